#!/bin/sh
# Builds the programs of one Kubernetes node, 1.20, from Debian's source package: about a quarter of an hour on two cores, once.
#
#   sh tests/cluster/build.sh
#
# Needs Debian 12, root (apt-get installs the Go compiler, CNI plugins and the tools that a kubelet calls) and 5 GB of disk
# while it builds. The programs stay in $PDSTACK_KUBERNETES, by default ~/.cache/pdstack/kubernetes-1.20, 450 MB. Nothing is
# built that is there. GO_PROCESSES is how many compilers run at once (2).
#
# 1.20 is old. It is the last version that Debian has whole, and the last but four whose kubelet speaks to Docker Engine by itself.
set -eu

home=${PDSTACK_KUBERNETES:-${XDG_CACHE_HOME:-$HOME/.cache}/pdstack/kubernetes-1.20}
bin=$home/bin
programs="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl"

say() { printf '%s\n' "tests/cluster: $*" >&2; }

complete() {
    for program in $programs pause device-plugin etcd; do
        [ -x "$bin/$program" ] || return 1
    done
    for command in dnsmasq socat conntrack iptables ip nsenter openssl; do
        command -v "$command" >/dev/null || return 1
    done
    [ -x /usr/lib/cni/ptp ]
}

install_packages() {
    say "installing Debian packages"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        golang-go gcc libc6-dev make rsync dpkg-dev containernetworking-plugins \
        dnsmasq-base socat conntrack iptables iproute2 ebtables ipset util-linux openssl >/dev/null
}

# The machine's own package sources, asked for sources instead of binaries, with lists of their own.
fetch_source() {
    say "fetching the source"
    mkdir -p "$home/build/apt/sources" "$home/build/apt/lists/partial" "$home/build/apt/cache/archives/partial"
    for list in /etc/apt/sources.list.d/debian.sources; do
        [ -e "$list" ] && sed 's/^Types:.*/Types: deb-src/' "$list" >"$home/build/apt/sources/debian.sources"
    done
    [ -e /etc/apt/sources.list ] && sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$home/build/apt/sources/debian.list"
    apt="apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$home/build/apt/sources
        -o Dir::State::lists=$home/build/apt/lists -o Dir::Cache=$home/build/apt/cache -o APT::Sandbox::User=root"
    cd "$home/build"
    $apt update
    $apt source --download-only kubernetes
    rm -rf src
    dpkg-source --no-check -x kubernetes_1.20*.dsc src >/dev/null
}

build() {
    cd "$home/build/src"
    mkdir -p .go/src/k8s.io
    ln -sfn ../../.. .go/src/k8s.io/kubernetes
    # What `git describe` would say; without it the server gives its version as v0.0.0, and clients believe it.
    cat >version.sh <<EOF
KUBE_GIT_COMMIT=faecb196815e248d3ecfb03c680a4507229c2a56
KUBE_GIT_TREE_STATE=clean
KUBE_GIT_VERSION=v1.20.2
KUBE_GIT_MAJOR=1
KUBE_GIT_MINOR=20
EOF
    # The sample device plugin, as that of a node with two GPUs.
    plugin=test/images/sample-device-plugin
    sed -i -e 's#"example.com/resource"#"nvidia.com/gpu"#' \
        -e 's/"Dev-1"/"GPU-fake-0"/' \
        -e 's/"Dev-2"/"GPU-fake-1"/' $plugin/sampledeviceplugin.go
    # Pods' own containers and guaranteed ones are to be killed last when memory runs out, which root may ask for only with
    # CAP_SYS_RESOURCE; in a virtual machine without it no pod would start. A test needs no such order.
    sed -i 's/\(defaultSandboxOOMAdj *int = \)-998/\10/' pkg/kubelet/dockershim/docker_sandbox.go
    sed -i 's/\(guaranteedOOMScoreAdj *int = \)-997/\10/' pkg/kubelet/qos/policy.go
    # A pod is gone when its dead containers are, which this kubelet looks after once a minute and newer ones at once.
    sed -i 's/\(ContainerGCPeriod = \)time.Minute/\12 * time.Second/' pkg/kubelet/kubelet.go
    export HOME="$home/build/home" GOPATH="$PWD/.go" GOCACHE="$home/build/cache" CGO_ENABLED=0
    export GOFLAGS="-p=${GO_PROCESSES:-2}" GOMAXPROCS="${GO_PROCESSES:-2}" KUBE_GIT_VERSION_FILE="$PWD/version.sh"
    mkdir -p "$HOME"
    what=$plugin
    for program in $programs; do what="$what cmd/$program"; done
    say "building (its output: $home/build/log)"
    make WHAT="$what" >"$home/build/log" 2>&1 || { tail -n 20 "$home/build/log" >&2; exit 1; }
    mkdir -p "$bin"
    for program in $programs; do cp "_output/bin/$program" "$bin/$program"; done
    cp _output/bin/sample-device-plugin "$bin/device-plugin"
    gcc -Os -static -DVERSION=3.2 -o "$bin/pause" build/pause/linux/pause.c
    # The program alone: the package would start a service.
    cd "$home/build"
    apt-get -qq -o APT::Sandbox::User=root download etcd-server
    dpkg-deb -x etcd-server_*.deb etcd
    cp etcd/usr/bin/etcd "$bin/etcd"
}

if complete; then
    say "everything is in $bin"
    exit 0
fi
install_packages
mkdir -p "$home/build"
fetch_source
(build)
rm -rf "$home/build"
complete || { say "something is still missing in $bin"; exit 1; }
say "built into $bin"
