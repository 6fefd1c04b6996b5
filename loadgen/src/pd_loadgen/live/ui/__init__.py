"""What Locust's page and statistics show of a run, and the form that starts one."""
