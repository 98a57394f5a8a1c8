#!/bin/sh
# Builds build/tsnet.wasm: the pinned modules of Tailscale, the patch series over them, our shim, compiled to wasip1.
# Needs: go (any version that can fetch the one go.mod names), patch, the npm packages of the repository. TSNET_NAMES=1 keeps Go's names, for profiles.
set -eu
cd "$(dirname "$0")"
export GOTOOLCHAIN="${GATEHOUSE_GOTOOLCHAIN:-$(sed -n 's/^toolchain //p' go/go.mod)}" GOFLAGS="" GOWORK=off CGO_ENABLED=0
# What a tailnet service does not need; each tag takes its code out (tailscale.com/feature/featuretags).
omit="ace appconnectors aws advertiseexitnode bakedroots bird captiveportal cli colorable cliconndiag
clientmetrics clientupdate cloud completion completion_scripts conn25 dbus debug debugeventbus debugportmapper
desktop_sessions doctor drive flashappliance hujsonconf identityfederation iptables kube linuxdnsfight linkspeed
listenrawdisco logtail netlog networkmanager osrouter outboundproxy portlist portmapper posture qrcodes relayserver
remoteconfig resolved routecheck runtimemetrics sdnotify ssh synology syslog syspolicy systray taildrop tap tpm
tundevstats usermetrics wakeonlan webbrowser webclient"
tags=$(for t in $omit; do printf 'ts_omit_%s,' "$t"; done)
# For who asks the compiler what it takes (third-party.ts).
[ "${1:-}" != --tags ] || { echo "$tags"; exit; }

# Makes build/NAME: the pinned module PATH, whose checksum is SUM, with the series in PATCHES over it. go/go.mod replaces the module by it.
unpack() { # NAME PATH SUM PATCHES
  key=$(cat build.sh "$4"/*.patch | sha256sum | cut -c1-16)
  [ "$(cat "build/$1/.gatehouse-key" 2>/dev/null)" != "$key" ] || return 0
  version=$(sed -n "s|^\t$2 \(v[^ ]*\).*|\1|p" go/go.mod)
  [ -n "$version" ] || { echo "tsnet: go/go.mod names no version of $2" >&2; exit 1; }
  rm -rf "build/$1" build/tmp
  mkdir -p build/tmp
  # Outside our module: there the module is replaced by the copy that this makes.
  (cd build/tmp && echo 'module tmp' > go.mod && go mod download -json "$2@$version" > module.json)
  got=$(sed -n 's/.*"Sum": "\(.*\)".*/\1/p' build/tmp/module.json)
  [ "$got" = "$3" ] || { echo "tsnet: $2@$version has the sum '$got', not '$3' as pinned in build.sh" >&2; exit 1; }
  cp -r "$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' build/tmp/module.json)" "build/$1"
  chmod -R u+w "build/$1"
  for p in "$4"/*.patch; do
    patch -s -p1 -d "build/$1" < "$p" || { echo "tsnet: $p does not apply to $2@$version" >&2; exit 1; }
  done
  rm -rf build/tmp
  echo "$key" > "build/$1/.gatehouse-key"
}
# ./bump sets them.
sum="h1:2jK9VxQU4Vq/tyR7f2U2NqINxU0pV7R14TDBFsfguHE="
wireguard_sum="h1:CnIEL2n7Xql6Ux1k+Vu5S5ubDHCT/kxFgkKCY8FjefU="
gvisor_sum="h1:Zy8IV/+FMLxy6j6p87vk/vQGKcdnbprwjTxc8UiUtsA="
unpack tailscale.com tailscale.com "$sum" patches
unpack wireguard-go github.com/tailscale/wireguard-go "$wireguard_sum" patches-wireguard
unpack gvisor gvisor.dev/gvisor "$gvisor_sum" patches-gvisor
# The compiler is npm's: ../../package.json pins it. Without a runtime, and with no data of its own: the memory is the Go module's.
../../node_modules/.bin/node ../../node_modules/assemblyscript/bin/asc.js assembly/aead.ts --outFile go/aead/aead.wasm -O3 --runtime stub --noAssert \
  --importMemory --enable simd --use abort=
strip=' -s'; [ -z "${TSNET_NAMES:-}" ] || strip=''
(cd go && GOOS=wasip1 GOARCH=wasm go build -trimpath -buildvcs=false -tags "$tags" -ldflags="-w$strip" -o ../build/tsnet.wasm.new .)
../../node_modules/.bin/node jumps.ts build/tsnet.wasm.new
mv build/tsnet.wasm.new build/tsnet.wasm
ls -l build/tsnet.wasm | awk '{printf "tsnet.wasm: %.1f MB\n", $5 / 1e6}'
