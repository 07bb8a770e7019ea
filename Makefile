# Verbs; `make help` lists them.
GO ?= go
# The packages of all four modules; ./... is the root module's only.
MODULE = github.com/cantuslog/cantus
ALL = $(MODULE)/...
# What the nearest release tag calls this commit, empty if there is none.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)

.PHONY: help build test short race lint vuln fuzz bench soak idle bench-backup pgo scaling bench-etcd e2e long cluster failover faults faults-long overload netfaults alerts alerts-live docs interop natscli stores postgres proof powercut encryption encrypted-boot fulldisk damage crashpoints sim page pictures configuration clean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## bin/cantus, a static binary
	CGO_ENABLED=0 $(GO) build -pgo=cmd/cantus/release.pgo -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/cantus ./cmd/cantus

test: ## all tests that need nothing but Go
	$(GO) test $(ALL)

short: ## the quickest of them, two minutes, for the time between two edits
	$(GO) test -short $(ALL)

race: ## the packages with goroutines of their own, under the race detector
	$(GO) test -race -timeout 20m $(MODULE)/subjects $(MODULE)/client/... ./wal/... ./raftstore/... ./broker/... ./cantustest/... ./cmd/...
	$(GO) test -race -short -timeout 20m ./examples/...

lint: ## gofmt, vet of all build tags, golangci-lint (built from .ci/golangci: some minutes the first time)
	./.ci/vet
	mkdir -p bin && cd .ci/golangci && $(GO) build -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	for module in . client client/oteltrace subjects; do (cd $$module && "$(CURDIR)/bin/golangci-lint" run ./...) || exit 1; done

vuln: ## known vulnerabilities of what is linked in, or outdated modules if their database cannot be reached
	./.ci/vuln

fuzz: ## each fuzz target for FOR (default 10m), and its executions: docs/fuzzing.md
	./.ci/fuzz $(FOR)

bench: build ## Cantus beside JetStream, on this machine
	bin/cantus bench --vs jetstream

soak: build ## half an hour at RATE appends a second (default 70000), trimmed to 4 GiB: every minute in soak.json
	bin/cantus bench append --rate $${RATE:-70000} --rounds 30 --duration 1m --warm-up 0s --in-flight 1024 --keep 4294967296 --json > soak.json

idle: build ## what nodes with nothing to do cost, 4 and 1,024 partitions, and how long `cantus status` takes
	./.ci/idle

pgo: build ## cmd/cantus/release.pgo anew: profiles of three nodes under load, which make build uses
	./.ci/pgo

bench-backup: build ## what backups cost, and an idle archiver (THOUSANDS of transactions, default 2000)
	./.ci/backup $${THOUSANDS:-2000}

scaling: build ## how cost grows with partitions, payload, locks, connections, the log: plots in docs/scaling
	$(GO) run ./internal/scaling

bench-etcd: build ## Cantus beside etcd, three nodes each
	cd e2e/bench && $(GO) run . --members 3 --conns 64 --in-flight 1 --cantus ../../bin/cantus

e2e: ## the built binary from outside: replays, kills, bad input
	$(GO) test -count=1 ./e2e/...

cluster: ## clusters of real processes at full length: failing leaders, restarts, replaced nodes
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 60m -v -run '^TestCluster' ./e2e

failover: ## how long a partition pauses when its leader is killed, or stopped
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 60m -v -run '^TestClusterFailoverPauses$$' ./e2e

faults: ## random faults on real processes for half an hour, ending in the judge; as root also of disks (FOR=30m, SEED=, BINARY= another cantus)
	$(GO) test -count=1 -timeout 0 -v -run '^TestMixedFaults$$' ./e2e -args -faults-for $${FOR:-30m} -faults-seed $${SEED:-0} -binary "$(abspath $(BINARY))"

faults-long: ## the same for eight hours
	$(MAKE) faults FOR=8h

overload: ## ten times what three nodes sustain, 10,000 long polls, 500 readers that never read, ending in the judge (FOR=5m)
	$(GO) test -count=1 -timeout 0 -v -run '^TestOverload$$' ./e2e -args -overload-for $${FOR:-5m}

netfaults: ## clusters in network namespaces with cut and slow links (root, iproute2, sch_netem)
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 60m -v -tags netfaults -run '^TestNet' ./e2e

long: ## the tests that take samples, at full length: every damage, 20 kills on one and on four partitions
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 2h ./wal ./e2e

alerts: ## the alert rules and their tests, with promtool (fetched from Debian if it is not there)
	./.ci/alerts

alerts-live: ## each alert fires in a Prometheus when its fault is made, and is resolved (root, strace; prometheus is fetched from Debian if it is not there)
	$(GO) test -count=1 -timeout 60m -parallel 4 -tags alertslive -v -run '^TestAlertsLive$$' ./e2e

docs: ## the command lines of the documents, run as they are written, those of the longest pages too
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 30m -v -run '^TestDocs$$' ./e2e

interop: ## the same from Node.js and C (needs npm, cc and libnats-dev)
	./.ci/interop

natscli: ## every nats command line of the documents, with the real command (built from .ci/tools)
	$(GO) test -count=1 -timeout 10m -tags natscli -run '^TestNATSCommand$$' ./e2e

stores: .ci/stores/node_modules/.package-lock.json ## backups in servers of S3, Google's and Azure's storage (needs npm; installed from .ci/stores: some minutes the first time)
	$(GO) test -count=1 -timeout 15m -tags stores -v -run '^TestStores' ./internal/backup ./e2e

.ci/stores/node_modules/.package-lock.json: .ci/stores/package-lock.json
	cd .ci/stores && npm ci --no-audit --no-fund --silent

postgres: ## views and the bank on PostgreSQL (needs Debian's postgresql)
	$(GO) test -count=1 -tags postgres ./cantustest/clienttest/sqlview ./examples/bank

proof: ## the long tests of the client: kills, failures, skew, a million behind
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 60m -run 'Stale|Skew|CatchingUp' ./cantustest/clienttest -v
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 60m -tags postgres -run BooksAreRight ./examples/bank -v

powercut: ## the store, the index of names, cuts of leaders' power, and 100 cuts during operations, on loop-mounted file systems (root, 20 minutes)
	CANTUS_LONG=1 $(GO) test -count=1 -timeout 60m -tags powercut -run PowerFails -v ./wal ./broker ./e2e

encryption: ## an encrypted disk whose keys are replaced under load (root, cryptsetup; without dm-crypt in Debian's User-mode Linux)
	./.ci/encryption

encrypted-boot: ## a Debian boots with its data on an encrypted disk, and without that disk, in User-mode Linux (root; SUITE=trixie, KEEP=DIR keeps the Debian)
	SUITE=$(SUITE) KEEP=$(KEEP) ./.ci/encryptedboot/run

fulldisk: ## a node whose file system somebody else fills to the last byte (root)
	CANTUS_LONG=1 $(GO) test -count=1 -tags fulldisk -run FullDisk -v ./e2e

crashpoints: ## a node is killed after each of its durable steps, in six operations, and cantus recover (strace; EVERY=1, SEED=1)
	$(GO) test -count=1 -timeout 0 -tags crashpoints -v -run '^Test(Recover)?CrashPoints$$' ./e2e -args -crash-every $${EVERY:-1} -crash-seed $${SEED:-1}

damage: ## damaged files on one of three nodes, ending in the judge (EPISODES=200, SEED=)
	$(GO) test -count=1 -timeout 0 -v -run '^TestDamage$$' ./e2e -args -damage-episodes $${EPISODES:-200} -damage-seed $${SEED:-0}

sim: ## replicas, the data path and whole nodes in virtual time, with faults: CANTUS_SIM_RUNS seeds (default 200, or 100) from CANTUS_SIM_SEED on
	CANTUS_SIM_RUNS=$${CANTUS_SIM_RUNS:-200} $(GO) test -count=1 -timeout 60m -run "^TestSimulation$$" ./raftstore
	CANTUS_SIM_RUNS=$${CANTUS_SIM_RUNS:-200} $(GO) test -count=1 -timeout 60m -run "^TestSimulationOfTheDataPath$$" ./broker
	CANTUS_SIM_RUNS=$${CANTUS_SIM_RUNS:-100} $(GO) test -count=1 -timeout 60m -run "^TestSimulationOfNodes$$" ./broker

page: build ## the page of a node, in a browser (needs chromium); with PICTURES=1 also docs/page/*.webp
	cd .ci/page && PAGE_BINARY="$(abspath bin/cantus)" PAGE_PICTURES="$(if $(PICTURES),$(abspath docs/page))" $(GO) test -count=1 -v .

pictures: ## docs/pictures/*.svg from the sources beside them (with d2, built from .ci/pictures)
	./.ci/pictures/run

configuration: ## the tables of docs/configuration.md from the flags of cantus serve
	$(GO) test -count=1 ./cmd/cantus -run '^TestConfigurationPage$$' -update

# What is installed.
.PHONY: release reproducible debian container kubernetes

release: ## archives, Debian packages, the Helm chart, bills of materials and checksums in DIST (default dist), of a tag or as a snapshot (TARGETS=linux/amd64,…)
	cd .ci/release && $(GO) run . -out $(abspath $(or $(DIST),dist)) $(if $(TARGETS),-targets $(TARGETS))

reproducible: ## two releases of what is committed, in different directories and with different caches, are the same (TARGETS=linux/amd64,…)
	./.ci/reproducible $(or $(TARGETS),linux/amd64)

debian: ## the Debian package is installed, run, upgraded and removed under a systemd of its own (root; KEEP=DIR keeps the Debian)
	KEEP=$(KEEP) ./.ci/debian/run

container: ## the container file is built with buildah from what is committed, and its image runs with podman (root; no registry)
	./.ci/container

kubernetes: ## deploy/kubernetes from the Helm chart, and the checks of both
	cd .ci/deploy && $(GO) test -count=1 . -update

clean: ## remove what the targets made
	rm -rf bin dist .ci/stores/node_modules e2e/node/node_modules examples/node/node_modules
