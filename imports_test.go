package cantus_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cantuslog/cantus"

// layers lists which of the module's packages each folder may import, besides
// itself. docs/architecture.md describes the layers.
var layers = map[string][]string{
	"subjects":  {},
	"lockmgr":   {},
	"wal":       {},
	"raftstore": {"wal"},
	"broker":    {"raftstore", "lockmgr", "wal", "subjects"},
	"client":    {"subjects"},
	"cmd":       {"broker", "client", "wal", "subjects", "internal"}, // the benchmark's peer
	"e2e":       {},
	"examples":  {"client", "broker", "subjects"},

	"cantustest": {"broker", "client", "subjects"},
	"internal":   {"client", "raftstore", "subjects", "wal"},
}

// rooms says which packages inside a folder only some may import.
var rooms = map[string][]string{
	"raftstore/peernet": {"raftstore"},
}

// banned says which modules a package may not import although its folder may.
var banned = map[string][]string{
	"internal/backup":   {module + "/broker", module + "/raftstore"},
	"raftstore/peernet": {"github.com/hashicorp/raft", module + "/raftstore", module + "/wal"},
	// A program that embeds a node, or uses the client, links no more of
	// OpenTelemetry than it has chosen.
	"broker":                 {"go.opentelemetry.io/otel/sdk", "go.opentelemetry.io/otel/exporters"},
	"broker/internal/traces": {"go.opentelemetry.io/otel/sdk", "go.opentelemetry.io/otel/exporters"},
	"client":                 {"go.opentelemetry.io"},
	"client/group":           {"go.opentelemetry.io"},
	"client/sqlview":         {"go.opentelemetry.io"},
}

// inBroker says which other packages of broker each package below it may
// import. None imports broker itself.
var inBroker = map[string][]string{
	"broker/cluster":             {},
	"broker/internal/loglimit":   {},
	"broker/internal/natslink":   {},
	"broker/internal/natsserver": {"broker/internal/loglimit", "broker/internal/natslink", "broker/internal/ports"},
	"broker/internal/ports":      {},
	"broker/internal/traces":     {"broker/internal/loglimit"},
	"broker/traceexport":         {"broker/internal/loglimit"},
}

// TestRoomsOfBroker checks that the packages below broker do not import each
// other's insides.
func TestRoomsOfBroker(t *testing.T) {
	seen := 0
	for _, p := range packages(t) {
		room := strings.TrimPrefix(p.ImportPath, module+"/")
		if strings.Contains(p.ImportPath, " ") || !strings.HasPrefix(room, "broker/") {
			continue
		}
		may, known := inBroker[room]
		if !known {
			t.Errorf("%s is not in inBroker: add it, and to docs/architecture.md", room)
		}
		seen++
		for _, to := range p.Imports {
			to := strings.TrimPrefix(to, module+"/")
			if (to == "broker" || strings.HasPrefix(to, "broker/")) && !slices.Contains(may, to) {
				t.Errorf("%s imports %s: it may import %v of broker", room, to, may)
			}
		}
	}
	if seen < len(inBroker) {
		t.Errorf("go list found %d packages below broker, and not %d", seen, len(inBroker))
	}
}

// testLayers lists what a folder's tests may import besides.
var testLayers = map[string][]string{
	"lockmgr":   {"internal"},
	"wal":       {"internal"},
	"raftstore": {"internal"},
	"broker":    {"internal"},
	"e2e":       {"client", "internal"}, // of the client the traces
	"examples":  {"cantustest", "internal"},

	"cantustest": {"internal"},
}

// testOwners says which folders' tests may import a module beside its owners:
// real databases and peers.
var testOwners = map[string][]string{
	"github.com/nats-io/nats-server":    {"cantustest"},
	"modernc.org/sqlite":                {"cantustest"},
	"github.com/jackc/pgx":              {"cantustest"},
	"github.com/cockroachdb/datadriven": {"broker", "cmd", "lockmgr"},
	"github.com/anishathalye/porcupine": {"internal"},
}

// owners says which folders alone may import a module of others.
var owners = map[string][]string{
	"github.com/dgraph-io/badger":       {"wal"},
	"github.com/hashicorp/raft":         {"raftstore"},
	"github.com/nats-io/nats-server":    {"broker", "internal"},
	"github.com/nats-io/nats.go":        {"broker", "cantustest", "client", "cmd", "e2e", "examples", "internal", "subjects"},
	"github.com/prometheus":             {"broker", "cmd"},
	"go.opentelemetry.io":               {"broker", "cantustest", "client", "cmd", "e2e", "internal"},
	"gocloud.dev":                       {"internal"},
	"github.com/Azure":                  {"internal"},
	"github.com/aws":                    {"internal"},
	"cloud.google.com/go/storage":       {"internal"},
	"github.com/alecthomas/kong":        {"cmd"},
	"github.com/go-json-experiment":     {"cmd"},
	"modernc.org/sqlite":                {"examples"},
	"github.com/jackc/pgx":              {"examples"},
	"github.com/cockroachdb/datadriven": {}, // scripts of tests
	"github.com/anishathalye/porcupine": {}, // a second judge

	"github.com/antithesishq/antithesis-sdk-go": {"internal"},
}

// TestImportsRunDownwards checks the imports of every package and of its tests
// against layers and owners. lockmgr, except for its tests, may only import the
// standard library.
func TestImportsRunDownwards(t *testing.T) {
	for _, p := range packages(t) {
		folder := folderOf(p.ImportPath)
		if folder == "" {
			continue // this test
		}
		allowed, known := layers[folder]
		if !known {
			t.Errorf("folder %s is not in the house: add it to layers and to docs/architecture.md", folder)
		}
		checkImports(t, p.ImportPath, p.Imports, allowed, nil)
		checkRooms(t, p.ImportPath, p.Imports)
		checkImports(t, p.ImportPath+" (tests)", slices.Concat(p.TestImports, p.XTestImports), slices.Concat(allowed, testLayers[folder]), testOwners)
	}
}

// checkImports checks what a package of ours imports; allowed are the folders
// that it may, and more who may import a module beside its owners.
func checkImports(t *testing.T, from string, imports, allowed []string, more map[string][]string) {
	t.Helper()
	folder := folderOf(from)
	for _, to := range imports {
		if to == module || strings.HasPrefix(to, module+"/") {
			if to == module+"/internal/invariant" {
				continue // it knows nothing of ours, and every folder may assert
			}
			if f := folderOf(to); f != folder && !slices.Contains(allowed, f) {
				t.Errorf("%s imports %s: %s may import %v of ours", from, to, folder, allowed)
			}
			continue
		}
		for owned, by := range owners {
			if (to == owned || strings.HasPrefix(to, owned+"/")) && !slices.Contains(by, folder) && !slices.Contains(more[owned], folder) {
				t.Errorf("%s imports %s: only %v may", from, to, by)
			}
		}
		if folder == "lockmgr" && more == nil && strings.Contains(strings.Split(to, "/")[0], ".") {
			t.Errorf("%s imports %s: lockmgr knows the standard library only", from, to)
		}
	}
}

// checkRooms checks what a package imports against rooms and banned.
func checkRooms(t *testing.T, from string, imports []string) {
	t.Helper()
	own := strings.TrimPrefix(from, module+"/")
	for _, to := range imports {
		by, is := rooms[strings.TrimPrefix(to, module+"/")]
		if is && !slices.Contains(by, own) {
			t.Errorf("%s imports %s: only %v may", from, to, by)
		}
		for _, no := range banned[own] {
			if to == no || strings.HasPrefix(to, no+"/") {
				t.Errorf("%s imports %s: it may not", from, to)
			}
		}
	}
}

// TestJudgeKnowsTheContractOnly checks that what judges histories depends on
// nothing that could have the same defect as the node.
func TestJudgeKnowsTheContractOnly(t *testing.T) {
	seen := false
	for _, p := range packages(t) {
		own := strings.TrimPrefix(p.ImportPath, module+"/")
		if own != "internal/judge" && !strings.HasPrefix(own, "internal/judge/") {
			continue
		}
		seen = true
		for _, to := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			switch folder := folderOf(to); {
			case !strings.HasPrefix(to, module+"/"), folder == "subjects":
			case strings.HasPrefix(to, module+"/internal/judge"), to == module+"/internal/testkit":
			default:
				t.Errorf("%s imports %s: it may know the contract only", p.ImportPath, to)
			}
		}
	}
	if !seen {
		t.Error("go list found no internal/judge")
	}
}

// TestWorkloadKnowsTheContractOnly checks that what asks and records depends on
// nothing of the project but the judge, and that simulations and programs can
// use it: it does not import package testing.
func TestWorkloadKnowsTheContractOnly(t *testing.T) {
	seen := false
	for _, p := range packages(t) {
		if p.ImportPath != module+"/internal/workload" {
			continue
		}
		seen = true
		for _, to := range p.Imports {
			own := strings.HasPrefix(to, module+"/") && to != module+"/internal/judge"
			outside := strings.Contains(strings.Split(to, "/")[0], ".") && !strings.HasPrefix(to, module+"/") && to != "github.com/nats-io/nats.go"
			if own || outside || to == "testing" || strings.HasPrefix(to, "testing/") {
				t.Errorf("%s imports %s: it may import the judge, nats.go and the standard library without testing", p.ImportPath, to)
			}
		}
	}
	if !seen {
		t.Error("go list found no internal/workload")
	}
}

type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 6 {
		t.Fatalf("go list found %d packages: the test would see nothing", len(all))
	}
	return all
}

// folderOf returns the top-level folder of one of our packages.
func folderOf(path string) string {
	path, _, _ = strings.Cut(path, " ")
	folder, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, module), "/"), "/")
	return folder
}
