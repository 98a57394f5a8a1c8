# Gatehouse. `make run` builds everything and shows it working; `make test` tests it; `make image` makes what is flashed.

ARCH ?= arm64
# What the files of an image are called after.
VARIANT = $(if $(PROFILE),$(PROFILE)-)$(ARCH)
# The image that `make run` boots: of this machine's own kind, which is emulated fastest.
RUN_ARCH ?= $(if $(filter aarch64,$(shell uname -m)),arm64,amd64)
NODE := node_modules/.bin/node --disable-warning=ExperimentalWarning
# Where tools/setup put npm and Go, on a machine whose own are missing or too old.
export PATH := $(CURDIR)/out/cache/npm/bin:$(CURDIR)/out/cache/go/bin:$(PATH)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo env "PATH=$(PATH)" "SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH)" "BUILD_BEGAN=$(BUILD_BEGAN)" \
	$(foreach v,GATEHOUSE_IMAGE_VERSION GATEHOUSE_KEYS GATEHOUSE_DOWNLOAD_URL GATEHOUSE_DEBIAN_MIRROR GATEHOUSE_FRESH GATEHOUSE_PROFILE GATEHOUSE_NODES GATEHOUSE_RASPIOS_ARCHIVE GATEHOUSE_RASPIOS_KEYRING,$(if $($(v)),"$(v)=$($(v))")))
# The build date in the program: that of the commit, so that one commit gives one program.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)

# For the RESULT line of an image build: from the command to the image, the program included.
export BUILD_BEGAN := $(shell date +%s)

.PHONY: run rebuild channel flash format test test-long test-update test-faults test-raspios test-nodes test-runtimes docs-tsnet check bench-tsnet bench-gateway bench-lines bench-appliance soak image app cli wasm gpio lab setup clean help package rebuild-image reproduce extension

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

run: lab image-$(RUN_ARCH) ## build the image, boot it in QEMU in an offline tailnet, prove that it serves (RUN_ARCH=arm64: the Pi's own)
	@$(SUDO) $(NODE) test/showcase.ts $(RUN_ARCH) $(RUN_FLAGS)

image: export GATEHOUSE_PROFILE = $(PROFILE)
image: export GATEHOUSE_NODES = $(NODES)
image: app ## the flashable image: out/gatehouse-$(ARCH).img.zst and what belongs to it (ARCH=arm64 or amd64; PROFILE=raspios: out/gatehouse-raspios-arm64…; NODES='…': nodes to build in)
	@$(SUDO) image/build $(ARCH)

# With a version of today, so that devices take it. What moved (package.json, the lock files, go.mod) is to be committed.
rebuild: setup ## the image anew with the newest of Debian, Node.js, npm and Go; says what changed and which advisories that closes (ARCH=…; FORWARD=no: Debian alone)
	@[ "$(FORWARD)" = no ] || $(NODE) tools/forward.ts
	@[ "$(FORWARD)" = no ] || $(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory rebuild-image

# By the tools of the image's own build, which that leaves.
extension: export SOURCE_DATE_EPOCH := $(if $(TODAY),$(shell date +%s),$(SOURCE_DATE_EPOCH))
extension: setup ## a program beside Node-RED, signed: make extension NAME=mosquitto [ARCH=…] [TODAY=1: a version of today]; out/NAME-ARCH.extension, for the card
	@$(SUDO) image/extension "$(NAME)" $(ARCH)

rebuild-image: export SOURCE_DATE_EPOCH := $(shell date +%s)
rebuild-image: export GATEHOUSE_FRESH = 1
rebuild-image: export GATEHOUSE_PROFILE = $(PROFILE)
rebuild-image: app
	@[ ! -e out/gatehouse-$(VARIANT).packages.txt ] || cp out/gatehouse-$(VARIANT).packages.txt out/packages-before-$(VARIANT).txt
	@$(SUDO) image/build $(ARCH)
	@[ ! -e out/packages-before-$(VARIANT).txt ] || { \
		$(NODE) tools/changes.ts out/packages-before-$(VARIANT).txt out/gatehouse-$(VARIANT).packages.txt >out/changes-$(VARIANT).txt; \
		[ "$(FORWARD)" = no ] || [ ! -e out/forward.txt ] || sed -n '/^Advisories:/,$$p' out/forward.txt >>out/changes-$(VARIANT).txt; \
		cat out/changes-$(VARIANT).txt; $(SUDO) $(NODE) tools/release.ts changes out/update-$(VARIANT) out/changes-$(VARIANT).txt; }

# Its address, for Imager's list, is GATEHOUSE_DOWNLOAD_URL.
channel: ## adds what was built to a folder that any web server serves as updates.url: make channel FOLDER=… [ARCH=…] [PERCENTAGE=10] [XZ=1]
	@[ -n "$(FOLDER)" ] || { echo "make channel FOLDER=…: the folder that the web server serves" >&2; exit 2; }
	@$(NODE) tools/channel.ts "$(FOLDER)" --percentage $(or $(PERCENTAGE),100) $(if $(XZ),--xz) out/update-$(VARIANT)

# In a folder of its own, a clone of the commit, without what this one has cached but downloads.
reproduce: app ## builds the image twice, here and in a clone in another folder, and compares: ARCH=…; lists what differs in out/reproduce-$(ARCH).txt
	@$(SUDO) tools/reproduce $(ARCH)

image-amd64 image-arm64: image-%: app
	@$(SUDO) image/build $*

# What test/update updates to: the same system with a higher version, and so another root.
update-amd64 update-arm64: update-%: app
	@$(SUDO) env GATEHOUSE_IMAGE_VERSION=9.1 GATEHOUSE_UPDATE_ONLY=out/next-$* image/build $*

# Which image those tests boot that run on one: GATEHOUSE_ARCH=arm64 for what is flashed (test/vm/appliance.ts).
TRIED := $(or $(GATEHOUSE_ARCH),amd64)

# Those of the variables that are set, for a command that sudo may start without the environment.
given = $(foreach v,$(1),$(if $($(v)),$(v)=$($(v))))

format: setup ## lays out the code as `make check` wants it
	@$(NODE) node_modules/prettier/bin/prettier.cjs --write --log-level warn .

flash: ## write the image to a card: make flash DEVICE=/dev/sdX [IMAGE=…]; refuses what is not removable, asks, verifies; KEEP=1: the card's data stay
	@$(SUDO) $(NODE) tools/flash.ts $(if $(KEEP),--keep) "$(DEVICE)" $(or $(IMAGE),out/gatehouse-$(VARIANT).img.zst)

# The image that is flashed is built beside the tests that do not need it, with what they leave: of a fresh clone it takes eight minutes.
test: ## all tests; ends with a line "N passed, N failed"
	@$(MAKE) --no-print-directory check CHECK_FLAGS='--save out/tally.json'
	@tools/setup browser
	@$(MAKE) --no-print-directory lab image-amd64
	@for one in mosquitto influxdb; do $(SUDO) image/extension $$one amd64 || exit 1; done
	@$(NODE) test/nodes/fetch.ts quick
	@mkdir -p out/log; failed=0; \
	nice -n 19 $(SUDO) image/build arm64 >out/log/build-arm64.log 2>&1 & built=$$!; \
	$(SUDO) $(NODE) test/run.ts --add out/tally.json --save out/tally.json tsnet lab || failed=1; \
	echo "waiting for the arm64 image"; \
	wait $$built || { cat out/log/build-arm64.log; exit 1; }; \
	$(SUDO) $(NODE) test/run.ts --add out/tally.json vm scenarios || failed=1; \
	exit $$failed

test-long: lab wasm image-amd64 update-$(TRIED) image-arm64 ## what takes long: 1 GiB each way, 10,000 connections, more networks, waits as long as in life, a Raspberry Pi 3B; some hours, noted in docs/test-long.md; TESTS="vm/names scenarios" for some
	@for one in mosquitto influxdb; do $(SUDO) image/extension $$one $(TRIED) || exit 1; done
	@$(SUDO) env GATEHOUSE_LONG=1 $(call given,GATEHOUSE_ARCH GATEHOUSE_CARD GATEHOUSE_CUTS) $(NODE) test/run.ts --record docs/test-long.md $(or $(TESTS),tsnet vm scenarios)

test-update: lab image-$(TRIED) update-$(TRIED) ## an update on the booted image: refused, on trial, left again, the power gone, staying; some 15 minutes with its build; GATEHOUSE_ROUNDS=30 for many power cuts; GATEHOUSE_ARCH=arm64 GATEHOUSE_FIRMWARE=u-boot through a Pi's boot chain
	@[ "$(GATEHOUSE_FIRMWARE)" != u-boot ] || $(SUDO) test/vm/fetch-u-boot
	@$(SUDO) $(call given,GATEHOUSE_ROUNDS GATEHOUSE_CARD GATEHOUSE_ARCH GATEHOUSE_FIRMWARE) $(NODE) test/run.ts --record docs/test-long.md update

test-faults: lab image-$(TRIED) ## faults on the booted image (test/scenarios/*/): some 45 minutes; GATEHOUSE_ROUNDS=30 for many power cuts, GATEHOUSE_CARD=honest or lying for a card with a cache, GATEHOUSE_FAULTS=name,… for some
	@$(SUDO) $(call given,GATEHOUSE_ROUNDS GATEHOUSE_CARD GATEHOUSE_FAULTS GATEHOUSE_ARCH) $(NODE) test/run.ts --record docs/test-long.md faults

test-raspios: app ## PROFILE=raspios built against a stand-in for Raspberry Pi's archive, and looked at: its image is for no board; some 15 minutes, 2 with what the last left
	@$(SUDO) $(NODE) test/raspios/build.ts
	@$(SUDO) $(NODE) test/run.ts --record docs/test-long.md raspios

test-nodes: lab image-amd64 ## the 40 nodes that people install most, on the booted image; writes docs/nodes.md; an hour and more; GATEHOUSE_TRY=name,… for some
	@$(NODE) test/nodes/fetch.ts quick all
	@$(SUDO) env GATEHOUSE_TRY=$(or $(GATEHOUSE_TRY),all) $(call given,GATEHOUSE_TRY_ARCH) $(NODE) --test test/lab/nodes.test.ts
	@$(SUDO) $(call given,GATEHOUSE_TRY GATEHOUSE_TRY_ARCH) GATEHOUSE_ROUNDS=20 $(NODE) test/run.ts --record docs/test-long.md nodes
	@$(NODE) test/nodes/report.ts

check: setup ## format, types, lint, layers, documents, unit tests: about a minute
	@$(NODE) node_modules/prettier/bin/prettier.cjs --check --log-level warn .
	@$(NODE) node_modules/typescript/bin/tsc --noEmit
	@$(NODE) node_modules/typescript/bin/tsc --noEmit -p src/console
	@$(NODE) node_modules/oxlint/bin/oxlint --quiet src tools test bench
	@$(NODE) node_modules/markdownlint-cli2/markdownlint-cli2-bin.mjs >/dev/null
	@mkdir -p out
	@$(NODE) test/run.ts $(CHECK_FLAGS) unit

bench-gateway: lab wasm out/bin/caddy ## the gateway beside Caddy, nginx and HAProxy: ratios, plot and JSON in out/bench; some 7 minutes
	@tools/setup bench
	@mkdir -p out/cache/node-red && cp image/node-red/package*.json out/cache/node-red/
	@cd out/cache/node-red && { [ node_modules/node-red -nt package-lock.json ] || npm ci --omit=dev --ignore-scripts --no-audit --no-fund; }
	@$(SUDO) unshare --net -- sh -c 'ip link set lo up && exec $(NODE) bench/gateway.ts $(BENCH_FLAGS)'

out/bin/caddy: bench/caddy/go.mod bench/caddy/main.go | setup
	@echo "bench: compiling Caddy"
	@mkdir -p out/bin
	@cd bench/caddy && CGO_ENABLED=0 GOWORK=off go build -trimpath -buildvcs=false -o ../../out/bin/caddy .

bench-tsnet: lab wasm ## the bindings against native tsnet: ratios, plot and JSON in out/bench; some minutes
	@$(SUDO) $(NODE) bench/tsnet.ts $(BENCH_FLAGS)

bench-lines: lab wasm ## the bindings beside native tsnet on lines of 20 and 66 ms, with and without loss: ratios, plot and JSON in out/bench; some 9 minutes
	@$(SUDO) $(NODE) bench/lines.ts $(BENCH_FLAGS)

bench-appliance: lab image-$(RUN_ARCH) ## the booted image: time to serve beside the bare system, bytes written idle, memory; some 8 minutes
	@$(SUDO) $(NODE) bench/appliance.ts $(RUN_ARCH) $(BENCH_FLAGS)

soak: lab wasm ## hours of mixed use in the lab, natively: memory and files drawn, docs/soak.md and docs/soak.svg (HOURS=6)
	@$(SUDO) $(NODE) bench/soak.ts --hours $(or $(HOURS),6)

app: wasm gpio ## the program as the image ships it: out/app
	@$(NODE) tools/bundle.ts out/app
	@cp src/tsnet/build/tsnet.wasm out/app/tsnet.wasm
	@$(NODE) src/tsnet/third-party.ts out/app/THIRD_PARTY.txt
	@$(NODE) tools/third-party.ts out/app

docs-tsnet: setup ## the reference of the bindings, from their doc comments: src/tsnet/build/reference
	@mkdir -p out/cache/typedoc && cp src/tsnet/reference/package*.json out/cache/typedoc/
	@cd out/cache/typedoc && { [ node_modules -nt package-lock.json ] || npm ci --ignore-scripts --no-audit --no-fund; }
	@$(NODE) src/tsnet/reference/make.ts out/cache/typedoc src/tsnet/build/reference

# Compressed as well as it goes; the test packs, installs and uses it as a consumer would, and prints sizes, start and memory.
package: export TSNET_ZSTD ?= 19
package: lab wasm docs-tsnet ## the npm package of the bindings: out/package/*.tgz, tried in an empty project (GATEHOUSE_REPOSITORY=https://… for its links)
	@$(NODE) src/tsnet/package.ts
	@mkdir -p out/package && cd out/package && npm pack --silent ../../src/tsnet/build/package
	@$(SUDO) $(call given,TSNET_ZSTD GATEHOUSE_REPOSITORY) $(NODE) --test --test-reporter=spec src/tsnet/test/package.test.ts

test-runtimes: lab wasm ## the npm package of the bindings on Bun and Deno, which it fetches (200 MB): what works and what each lacks; a minute or two
	@mkdir -p out/cache/runtimes && cp src/tsnet/test/runtimes/package*.json out/cache/runtimes/
	@cd out/cache/runtimes && { [ node_modules -nt package-lock.json ] || npm ci --ignore-scripts --no-audit --no-fund; }
	@$(SUDO) $(NODE) --test --test-reporter=spec src/tsnet/test/runtimes.test.ts

cli: setup ## the laptop's command line as an npm package: out/gatehouse-cli.tgz
	@$(NODE) tools/cli.ts out

wasm: setup ## the bindings' module: src/tsnet/build/tsnet.wasm
	@src/tsnet/build.sh

# What stands in for Python where node-red-node-pi-gpio wants it, for both processors.
gpio: setup
	@mkdir -p out/gpio
	@cd src/gpio && for arch in amd64 arm64; do GOARCH=$$arch CGO_ENABLED=0 GOWORK=off GOFLAGS= GOTOOLCHAIN=$$(sed -n 's/^toolchain //p' ../tsnet/go/go.mod) \
		go build -trimpath -buildvcs=false -ldflags='-s -w' -o ../../out/gpio/$$arch . || exit 1; done

lab: setup ## the offline tailnet: out/bin/lab
	@echo "lab: compiling the control server, DERP, ACME authority and client"
	@mkdir -p out/bin
	@cd test/lab && CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=$$(sed -n 's/^toolchain //p' go.mod) go build -trimpath -buildvcs=false -o ../../out/bin/lab .

setup:
	@tools/setup

clean: ## removes all that was built (out/ holds the caches too)
	rm -rf src/tsnet/build
	$(SUDO) rm -rf out
