package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) {
	if err := testkit.AtOnce(max(4, runtime.GOMAXPROCS(0))); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// mustNotOpen expects an error from opening a node, and then checks that
// nothing was left behind: a node opens on the directory with opts afterwards.
func mustNotOpen(t *testing.T, dir string, bad broker.Options, want error, words ...string) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithTimeout(t.Context(), patience) // it may wait for others
	defer cancel()
	n, err := broker.Open(ctx, dir, bad)
	if err == nil {
		_ = n.Close()
		t.Fatal("it opened")
	}
	if want != nil && !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error %q does not say %q", err, w)
		}
	}
	goleak.VerifyNone(t, before)
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	opts := broker.Options{Partitions: 2, Cluster: "prod", Name: "alpha"}
	n, nc := openNode(t, dir, opts)
	mustNotOpen(t, dir, opts, broker.ErrInUse)
	appendTx(t, nc, "cantus.append.1", "x")
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	mustNotOpen(t, dir, broker.Options{Cluster: "test", Name: "alpha"}, broker.ErrIdentity, "prod", "test")
	mustNotOpen(t, dir, broker.Options{Cluster: "prod", Name: "beta"}, broker.ErrIdentity, "alpha", "beta")
	mustNotOpen(t, dir, broker.Options{Cluster: "prod", Name: "alpha", Partitions: 3}, broker.ErrIdentity, "2", "3")

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := opts
	busy.ClientListen = taken.Addr().String()
	mustNotOpen(t, dir, busy, broker.ErrNATSNotReady, taken.Addr().String())
	busy = opts
	busy.HTTPListen = taken.Addr().String()
	mustNotOpen(t, dir, busy, nil, "--http", taken.Addr().String())
	for _, listen := range []string{"nowhere", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536"} {
		busy.ClientListen, busy.HTTPListen = listen, ""
		mustNotOpen(t, dir, busy, nil, "listen")
	}

	n, err = broker.Open(t.Context(), dir, broker.Options{Cluster: "prod", Name: "alpha"}) // 0 takes what is there
	if err != nil {
		t.Fatal(err)
	}
	if n.Partitions() != 2 {
		t.Errorf("%d partitions", n.Partitions())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBadOptions(t *testing.T) {
	for name, o := range map[string]broker.Options{
		"name":               {Name: "a.b"},
		"cluster":            {Cluster: "a b"},
		"prefix":             {Prefix: "a..b"},
		"prefix with a $":    {Prefix: "$SYS"},
		"partitions":         {Partitions: 1025},
		"partitions below 0": {Partitions: -1},
		"locks":              {MaxLocks: -1},
		"message ids":        {MaxMsgIDs: 1 << 31},
		"window":             {MsgIDWindow: time.Millisecond},
		"ids without index":  {MsgIDWindow: broker.WholeLog, NoIndex: true},
		"queue":              {QueueBytes: 1},
		"tail":               {CacheBytes: 1},
		"reserve":            {MinFreeBytes: -1},
		"version":            {Version: "devel"},
		"version with a v":   {Version: "v1.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			mustNotOpen(t, dir, o, broker.ErrOptions)
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory was made: %v", err)
			}
		})
	}
}

func TestOpenWithACancelledContext(t *testing.T) {
	dir := t.TempDir()
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := broker.Open(ctx, dir, broker.Options{}); !errors.Is(err, context.Canceled) {
		_ = n.Close()
		t.Fatalf("got %v", err)
	}
	goleak.VerifyNone(t, before)
	openNode(t, dir, broker.Options{})
}

func TestOpenOnWhatIsNoDataDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustNotOpen(t, file, broker.Options{}, nil, "is a file")
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustNotOpen(t, other, broker.Options{}, broker.ErrDamaged, "letter.txt")
	if runtime.GOOS == "windows" || os.Geteuid() == 0 {
		return // nothing is read-only to root
	}
	readOnly := t.TempDir()
	if err := os.Chmod(readOnly, 0o500); err != nil {
		t.Fatal(err)
	}
	mustNotOpen(t, readOnly, broker.Options{}, broker.ErrReadOnly)
}

func TestDamagedIdentity(t *testing.T) {
	dir := t.TempDir()
	n, _ := openNode(t, dir, broker.Options{})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "cantus.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(good), "cantus", "cantuS", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	mustNotOpen(t, dir, broker.Options{}, broker.ErrDamaged)
}

func TestClosedNode(t *testing.T) {
	n, nc := one(t, broker.Options{ClientListen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", Profiles: true})
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + n.HTTPAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		defer http.DefaultClient.CloseIdleConnections()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	fill(t, nc)
	appendTx(t, nc, "cantus.append.0", "x", write, "a") // refused
	collect(t, nc, "cantus.read.0", "")
	for path, want := range map[string]string{"/healthz": "alive\n", "/livez": "alive\n", "/readyz": "ready\n"} {
		if code, body := get(path); code != 200 || body != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	code, metrics := get("/metrics")
	for _, line := range []string{
		`cantus_transactions_committed_total{partition="0"} 10`, `cantus_requests_refused_total{partition="0",reason="bad_request"} 1`,
		`cantus_high_water_mark{partition="0"} 10`, `cantus_reads_total{partition="0"} 1`, `cantus_transactions_read_total{partition="0"} 10`,
		`cantus_ready 1`, `cantus_batch_commit_seconds_count{partition="0"}`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics (%d) lack %s", code, line)
		}
	}
	for _, stage := range []string{"queue", "certify", "propose", "disk", "replicate", "apply", "reply"} {
		if line := fmt.Sprintf("cantus_append_stage_seconds_count{stage=%q} ", stage); !strings.Contains(metrics, line) || strings.Contains(metrics, line+"0\n") {
			t.Errorf("metrics lack %s", line)
		}
	}
	for path, want := range map[string]int{"": 200, "heap": 200, "block": 400, "block?seconds=1": 200, "profile?seconds=1": 200} {
		if code, body := get("/debug/pprof/" + path); code != want || want == 200 && body == "" {
			t.Errorf("profile %s: %d %q", path, code, body)
		}
	}
	if !n.Ready() || n.Err() != nil {
		t.Errorf("ready %v, %v", n.Ready(), n.Err())
	}
	tcp, err := nats.Connect(n.ClientURL(), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	appendTx(t, tcp, "cantus.append.0", "over TCP")
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-n.Done():
	default:
		t.Error("Done is open")
	}
	if n.Err() != nil || n.Ready() {
		t.Errorf("closed: %v, ready %v", n.Err(), n.Ready())
	}
	if nc, err := n.Conn(); err == nil {
		nc.Close()
		t.Error("a closed node gives connections")
	}
}

// A node for embedding opens no port.
func TestNoPorts(t *testing.T) {
	n, _ := one(t, broker.Options{})
	if n.ClientURL() != "" || n.HTTPAddr() != "" {
		t.Errorf("%q, %q", n.ClientURL(), n.HTTPAddr())
	}
}
