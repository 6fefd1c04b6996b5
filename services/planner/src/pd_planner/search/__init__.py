"""Which deployments there could be, what each carries, and which of them is wanted."""
