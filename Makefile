# Everything that a fresh machine needs beside Go is fetched and built by these targets.
export CGO_ENABLED ?= 0
export GOFLAGS ?= -trimpath

LINT := bin/golangci-lint
# A cache of its own: one that checkouts share reports the other's files, whose nolint comments are not read
# once that checkout is gone.
export GOLANGCI_LINT_CACHE := $(CURDIR)/bin/golangci-lint-cache
FUZZTIME ?= 1m

.PHONY: all build demo test lint generated generate unit race fuzz fmt clean

all: build

build: bin/shoal

.PHONY: bin/shoal
bin/shoal:
	go build -o $@ ./cmd/shoal

# The main job: pack, push, mirror, leases, swarm and final files on this machine.
# make demo ARGS="--nodes 8 --size 1GiB"
demo: bin/shoal
	bin/shoal demo $(ARGS)

# Quick checks first.
test: lint unit race

lint: $(LINT) generated
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run: make fmt"; exit 1; }
	go vet ./...
	$(LINT) run ./...

$(LINT): tools/go.mod
	cd tools && CGO_ENABLED=0 go build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# Deep copies and CRDs, from the Go types of the API: one API group a package. OUT is where they go.
APIS := api/v1alpha1 api/shoal/v1alpha1
CRDS := charts/shoal/crds
OUT ?= .
generate:
	@set -e; for api in $(APIS); do \
	  go tool -modfile=tools/generate/go.mod controller-gen object crd paths=./$$api \
	    output:object:dir=$(OUT)/$$api output:crd:dir=$(OUT)/$(CRDS); \
	done

# Whether what make generate would write is what is there.
generated:
	@set -e; out=$$(mktemp -d); trap 'rm -rf $$out' EXIT; \
	$(MAKE) --no-print-directory generate OUT=$$out; \
	{ diff -r $$out/$(CRDS) $(CRDS) && for api in $(APIS); do \
	  diff $$out/$$api/zz_generated.deepcopy.go $$api/zz_generated.deepcopy.go || exit 1; done; } || \
	{ echo "run: make generate"; exit 1; }

unit:
	go test -timeout 15m ./...

# The race detector needs cgo; the packages with the most concurrency pay for it.
RACE := ./tracker/... ./peer/... ./mirror/... ./swarm/... ./internal/registry/... ./internal/acr/...
race:
	@if command -v $${CC:-cc} >/dev/null; then CGO_ENABLED=1 go test -race -short $(RACE); \
	else echo "no C compiler: the race detector is skipped (apt-get install gcc)"; fi

# How fast many nodes get a model over shaped links: real processes in network namespaces. Needs root
# and iproute2; the last line is a JSON object.
# make bench-fanout NODES=8 SIZE=128MiB RATE=200mbit ARGS="--scenario all --runs 3"
NODES ?= 8
SIZE ?= 128MiB
RATE ?= 200mbit
.PHONY: bench-fanout bin/fanout
bin/fanout:
	go build -ldflags "-X main.revision=$$(git describe --always --dirty --abbrev=12)" -o $@ ./bench/fanout
bench-fanout: bin/shoal bin/fanout
	@bin/fanout --nodes $(NODES) --size $(SIZE) --rate $(RATE) $(ARGS)

# All figures of docs/performance.md, about half an hour: the raw results go to bench/results, the plot
# to docs.
RUNS ?= 3
RESULTS := bench/results/fanout.jsonl
FANOUT = bin/fanout --size $(SIZE) --runs $(RUNS) --out $(RESULTS)
.PHONY: bench
bench: bin/shoal bin/fanout
	mkdir -p $(dir $(RESULTS)) && rm -f $(RESULTS)
	$(FANOUT) --nodes 4
	$(FANOUT) --nodes 8 --scenario all --baselines
	$(FANOUT) --nodes 16 --rate 100mbit
	$(FANOUT) --nodes 8 --plaintext
	$(FANOUT) --nodes 8 --rate 100mbit --scenario cold,staggered
	go run ./bench/plot <$(RESULTS) >docs/fanout.svg
# How fast one node gives a model to another on loopback, and the CPU of both, beside net/http and curl;
# the last line is a JSON object.
# make bench-node SIZE=2GiB ARGS="--runs 5 --cpus 1"
.PHONY: bench-node bin/node
bin/node:
	go build -o $@ ./bench/node
bench-node: SIZE = 2GiB
bench-node: bin/shoal bin/node
	@bin/node --size $(SIZE) $(ARGS)
# What a thousand nodes and 1 TB would do, in virtual time on one processor: the tracker's own code, links
# and the torrent library as models. Compared first with what bench-fanout measured; the last line is a
# JSON object. make bench-sim ARGS="--nodes 100 --rate 25gbit", or ARGS=--help
.PHONY: bench-sim bin/sim
bin/sim:
	go build -o $@ ./bench/sim
bench-sim: bin/sim
	@bin/sim $(ARGS)

# The programs of a test cluster (Kubernetes, etcd, containerd, ...), from Go modules: a quarter of an hour
# the first time on two CPUs, and again only what has changed.
TOOLS := bin/tools
.PHONY: tools
tools:
	cd test/tools && go run ./build --out $(CURDIR)/$(TOOLS)

# Shoal on real clusters. Needs root, and Debian's runc and iproute2.
# make e2e ARGS="-run TestCluster -v -keep"
.PHONY: e2e
e2e: tools
	SHOAL_TOOLS=$(CURDIR)/$(TOOLS) go test -timeout 20m -count 1 ./test/e2e $(ARGS)

# Shoal's API and controller on real API servers, without nodes. Needs no root.
# make test-controlplane ARGS="-run TestAPI/Specs -v"
.PHONY: test-controlplane
test-controlplane: tools
	SHOAL_TOOLS=$(CURDIR)/$(TOOLS) go test -timeout 20m -parallel 4 -count 1 ./test/controlplane $(ARGS)

# The reads of the OCI distribution conformance suite against a mirror and a node's endpoint. Needs no root.
.PHONY: conformance
conformance: tools
	SHOAL_TOOLS=$(CURDIR)/$(TOOLS) go test -count 1 -run TestConformance -v ./test/e2e

# The same clusters to play with.
CLUSTERS ?= 1
NODES_PER_CLUSTER = $(if $(filter command line environment,$(origin NODES)),$(NODES),2)
.PHONY: cluster-up cluster-down cluster-status bin/cluster
bin/cluster:
	go build -o $@ ./test/cluster/cmd/cluster
cluster-up: tools bin/cluster
	@bin/cluster up --tools $(TOOLS) --clusters $(CLUSTERS) --nodes $(NODES_PER_CLUSTER)
cluster-down: bin/cluster
	@bin/cluster down
cluster-status: bin/cluster
	@bin/cluster status --tools $(TOOLS)

# Every fuzz target for FUZZTIME each.
fuzz:
	@set -e; for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "== $$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p; \
	  done; done

fmt:
	gofmt -w $$(git ls-files '*.go')

clean:
	rm -rf bin
