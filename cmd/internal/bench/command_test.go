package bench_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/cmd/internal/bench"
)

func parse(t *testing.T, args ...string) *bench.Command {
	t.Helper()
	var c bench.Command
	parser, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &c
}

// measure runs bench with few rounds, short ones, and gives its report.
func measure(t *testing.T, report any, args ...string) {
	t.Helper()
	var out, errOut bytes.Buffer
	c := parse(t, append(args, "--json", "--dir", t.TempDir(), "--rounds", "2")...)
	if err := c.Run(t.Context(), &out, &errOut); err != nil {
		t.Fatalf("%v\n%s", err, &errOut)
	}
	if err := json.Unmarshal(out.Bytes(), report); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
}

// checkRounds is for rounds that end by count: each did exactly so many.
func checkRounds(t *testing.T, r *bench.Report, names []string, count uint64) {
	t.Helper()
	var got []string
	for _, res := range r.Results {
		got = append(got, res.Name)
		if len(res.Rounds) != 2 {
			t.Errorf("%s: %d rounds, want 2", res.Name, len(res.Rounds))
		}
		for _, s := range res.Rounds {
			if s.Done != count || s.Rate <= 0 {
				t.Errorf("%s: %d done at %v a second, want %d", res.Name, s.Done, s.Rate, count)
			}
		}
		if res.P50 <= 0 || res.P99 < res.P50 || res.Max < res.P99*0.998 {
			t.Errorf("%s: latencies %v, %v, %v", res.Name, res.P50, res.P99, res.Max)
		}
	}
	if strings.Join(got, ",") != strings.Join(names, ",") {
		t.Errorf("results for %q, want %q", got, names)
	}
}

var peers = []string{
	"cantus", "jetstream default plain", "jetstream default expected", "jetstream always plain", "jetstream always expected",
}

func TestAppendBesideJetstream(t *testing.T) {
	var r bench.Report
	measure(t, &r, "append", "--vs", "jetstream", "--count", "300", "--conns", "2", "--in-flight", "8", "--keys", "1000",
		"--partitions", "2")
	checkRounds(t, &r, peers, 300)
}

func TestAppendOneAtATimeBesideJetstreamsGoClient(t *testing.T) {
	var r bench.Report
	measure(t, &r, "append", "--vs", "jetstream", "--vs-client", "go", "--count", "20", "--conns", "1", "--in-flight", "1")
	checkRounds(t, &r, peers, 20)
	if got := r.Results[1].Client; got != "js.PublishMsg" {
		t.Errorf("client %q, want js.PublishMsg", got)
	}
}

func TestAppendOnHotKeysMeetsConflictsAndGetsThrough(t *testing.T) {
	var r bench.Report
	measure(t, &r, "append", "--vs", "jetstream", "--vs-sync", "default", "--vs-client", "go", "--count", "200",
		"--conns", "2", "--in-flight", "8", "--keys", "2", "--locks", "2")
	checkRounds(t, &r, peers[:3], 200)
	for _, i := range []int{0, 2} {
		refused := r.Results[i].Rounds[0].Refused + r.Results[i].Rounds[1].Refused
		if refused == 0 {
			t.Errorf("%s: no refusals with two keys and 16 in flight", r.Results[i].Name)
		}
	}
}

func TestAppendWithoutLocksForATime(t *testing.T) {
	var r bench.Report
	measure(t, &r, "append", "--locks", "0", "--duration", "200ms", "--warm-up", "50ms", "--conns", "2", "--in-flight", "4")
	for _, s := range r.Results[0].Rounds {
		if s.Done == 0 || s.Refused != 0 || s.Seconds != 0.2 {
			t.Errorf("%d done, %d refused in %v s; want some, none, 0.2", s.Done, s.Refused, s.Seconds)
		}
	}
}

func TestReadBesideJetstream(t *testing.T) {
	for _, client := range []string{"pull", "push"} {
		var r bench.Report
		measure(t, &r, "read", "--vs", "jetstream", "--vs-client", client, "--fill", "1000", "--batch", "100",
			"--read-max", "64", "--read-bytes", "4000", "--duration", "300ms", "--warm-up", "0s")
		if len(r.Results) != 2 {
			t.Fatalf("%d results, want 2", len(r.Results))
		}
		for _, res := range r.Results {
			if res.Rounds[0].Done == 0 || res.Rounds[1].Done == 0 {
				t.Errorf("%s: a round read nothing", res.Name)
			}
		}
	}
}

func TestFill(t *testing.T) {
	var r bench.Report
	measure(t, &r, "fill", "--fill", "1000", "--batch", "100", "--unique-locks", "--partitions", "2")
	checkRounds(t, &r, []string{"cantus"}, 1000)
}

func TestStartup(t *testing.T) {
	var r bench.StartupReport
	measure(t, &r, "startup", "--fill", "500", "--batch", "100")
	if r.AfterKill.Min <= 0 || r.AfterStop.Min <= 0 || len(r.Marks) != 1 || r.Marks[0] != 500 {
		t.Errorf("%+v: want times, and all 500 still there", r)
	}
}

func TestDataIsKeptAndAProfileWritten(t *testing.T) {
	data, profile := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "cpu")
	for range 2 {
		var r bench.Report
		measure(t, &r, "append", "--count", "10", "--data", data, "--profile", profile)
	}
	for _, glob := range []string{filepath.Join(data, "*"), profile} {
		if found, err := filepath.Glob(glob); err != nil || len(found) == 0 {
			t.Errorf("%s: %v, %v; want something", glob, found, err)
		}
	}
}

func TestBadFlagsAreRefusedBeforeAnythingStarts(t *testing.T) {
	for name, args := range map[string][]string{
		"no connections":         {"append", "--conns=-1"},
		"nothing in flight":      {"append", "--in-flight=-1"},
		"payload too large":      {"append", "--size", "1000000"},
		"too many locks":         {"append", "--locks", "65"},
		"more locks than keys":   {"append", "--locks", "3", "--keys", "2"},
		"no time":                {"append", "--duration", "0s"},
		"negative warm-up":       {"append", "--warm-up=-1s"},
		"a peer for a fill":      {"fill", "--vs", "jetstream"},
		"somebody else's start":  {"startup", "--server", "nats://127.0.0.1:1"},
		"somebody else's data":   {"append", "--server", "nats://127.0.0.1:1", "--data", "x"},
		"batch of too many":      {"fill", "--batch", "10001"},
		"batch of too much":      {"fill", "--batch", "10000", "--size", "1000"},
		"read of too many":       {"read", "--read-max", "65537"},
		"prefix with a wildcard": {"append", "--prefix", "a.*"},
	} {
		err := parse(t, args...).Run(t.Context(), io.Discard, io.Discard)
		if !errors.Is(err, bench.ErrFlags) {
			t.Errorf("%s: %v, want ErrFlags", name, err)
		}
	}
}

func TestAServerThatIsNotThereIsSaid(t *testing.T) {
	err := parse(t, "append", "--server", "nats://127.0.0.1:1").Run(t.Context(), io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "nats://127.0.0.1:1") {
		t.Errorf("%v: want an error that names the address", err)
	}
}
