#!/bin/sh
# Builds build/tsnet.wasm: the pinned Tailscale module, the patch series over it, our shim, compiled to wasip1.
# Needs: go (any version that can fetch the one go.mod names), patch. TSNET_NAMES=1 keeps Go's names, for profiles.
set -eu
cd "$(dirname "$0")"
export GOTOOLCHAIN="${GATEHOUSE_GOTOOLCHAIN:-$(sed -n 's/^toolchain //p' go/go.mod)}" GOFLAGS="" GOWORK=off CGO_ENABLED=0
version=$(sed -n 's/^\ttailscale.com //p' go/go.mod)
sum="h1:2jK9VxQU4Vq/tyR7f2U2NqINxU0pV7R14TDBFsfguHE="

# What a tailnet service does not need; each tag takes its code out (tailscale.com/feature/featuretags).
omit="ace appconnectors aws advertiseexitnode bakedroots bird captiveportal capture cli colorable cliconndiag
clientmetrics clientupdate cloud completion completion_scripts conn25 dbus debug debugeventbus debugportmapper
desktop_sessions doctor drive flashappliance hujsonconf identityfederation iptables kube linuxdnsfight linkspeed
listenrawdisco logtail netlog networkmanager osrouter outboundproxy portlist portmapper posture qrcodes relayserver
remoteconfig resolved routecheck runtimemetrics sdnotify ssh synology syslog syspolicy systray taildrop tap tpm
tundevstats useexitnode usermetrics useproxy wakeonlan webbrowser webclient"
tags=$(for t in $omit; do printf 'ts_omit_%s,' "$t"; done)

key=$(cat build.sh patches/*.patch | sha256sum | cut -c1-16)
if [ "$(cat build/tailscale.com/.gatehouse-key 2>/dev/null)" != "$key" ]; then
  rm -rf build/tailscale.com build/tmp
  mkdir -p build/tmp
  # Outside our module: there the module is replaced by the copy that this makes.
  (cd build/tmp && echo 'module tmp' > go.mod && go mod download -json "tailscale.com@$version" > module.json)
  got=$(sed -n 's/.*"Sum": "\(.*\)".*/\1/p' build/tmp/module.json)
  [ "$got" = "$sum" ] || { echo "tsnet: tailscale.com@$version has the sum '$got', not '$sum' as pinned in build.sh" >&2; exit 1; }
  cp -r "$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' build/tmp/module.json)" build/tailscale.com
  chmod -R u+w build/tailscale.com
  for p in patches/*.patch; do
    patch -s -p1 -d build/tailscale.com < "$p" || { echo "tsnet: $p does not apply to tailscale.com@$version" >&2; exit 1; }
  done
  rm -rf build/tmp
  echo "$key" > build/tailscale.com/.gatehouse-key
fi
strip=' -s'; [ -z "${TSNET_NAMES:-}" ] || strip=''
(cd go && GOOS=wasip1 GOARCH=wasm go build -trimpath -buildvcs=false -tags "$tags" -ldflags="-w$strip" -o ../build/tsnet.wasm.new .)
mv build/tsnet.wasm.new build/tsnet.wasm
ls -l build/tsnet.wasm | awk '{printf "tsnet.wasm: %.1f MB\n", $5 / 1e6}'
