package bench_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/cmd/internal/bench"
	"github.com/cantuslog/cantus/internal/testkit"
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

// measure runs bench with few short rounds, and reads its report.
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

// checkRounds checks rounds that end by count: each did exactly count requests.
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
	"cantus", "jetstream R1 default plain", "jetstream R1 default expected",
	"jetstream R1 always plain", "jetstream R1 always expected",
}

func TestAppendBesideJetstream(t *testing.T) {
	t.Parallel()
	var r bench.Report
	measure(t, &r, "append", "--vs", "jetstream", "--count", "300", "--conns", "2", "--in-flight", "8", "--keys", "1000",
		"--partitions", "2")
	checkRounds(t, &r, peers, 300)
}

func TestAppendOneAtATimeBesideJetstreamsGoClient(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "append", "--vs", "jetstream", "--vs-client", "go", "--count", "20", "--conns", "1", "--in-flight", "1")
	checkRounds(t, &r, peers, 20)
	if got := r.Results[1].Client; got != "js.PublishMsg" {
		t.Errorf("client %q, want js.PublishMsg", got)
	}
}

func TestAppendOnHotKeysMeetsConflictsAndGetsThrough(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "append", "--vs", "jetstream", "--vs-sync", "default", "--vs-client", "go", "--count", "20",
		"--conns", "2", "--in-flight", "2", "--keys", "2", "--locks", "2")
	checkRounds(t, &r, append(peers[:3:3], "jetstream R1 default atomic"), 20)
	for _, i := range []int{0, 2, 3} {
		refused := r.Results[i].Rounds[0].Refused + r.Results[i].Rounds[1].Refused
		if refused == 0 {
			t.Errorf("%s: no refusals with two keys and 4 in flight", r.Results[i].Name)
		}
	}
}

func TestAppendWithoutLocksForATime(t *testing.T) {
	t.Parallel()
	var r bench.Report
	measure(t, &r, "append", "--locks", "0", "--duration", "200ms", "--warm-up", "50ms", "--conns", "2", "--in-flight", "4")
	for _, s := range r.Results[0].Rounds {
		if s.Done == 0 || s.Refused != 0 || s.Seconds != 0.2 {
			t.Errorf("%d done, %d refused in %v s; want some, none, 0.2", s.Done, s.Refused, s.Seconds)
		}
	}
}

func TestReadBesideJetstream(t *testing.T) {
	t.Parallel()
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

func TestTheGoClientAppendsAndReads(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "append", "--client", "go", "--count", "500", "--conns", "2", "--in-flight", "32", "--keys", "4",
		"--skew", "0.99", "--partitions", "2")
	checkRounds(t, &r, peers[:1], 500)
	if s := r.Results[0].Rounds[0]; s.Refused == 0 {
		t.Error("no refusals with four keys and 64 in flight")
	}
	measure(t, &r, "read", "--client", "go", "--fill", "1000", "--batch", "100", "--count", "1500")
	for _, s := range r.Results[0].Rounds {
		if s.Done != 1500 {
			t.Errorf("read %d, want all 1000 and half of them again", s.Done)
		}
	}
}

func TestBatchesAreCountedByTransaction(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "batch", "--vs", "jetstream", "--vs-sync", "default", "--count", "800", "--batch", "50", "--conns", "1",
		"--in-flight", "2", "--locks", "2", "--keys", "100")
	// Refused requests are not sent again, and an incomplete batch is not sent.
	if s := r.Results[0].Rounds[0]; s.Done <= 750 || s.Done > 800 || s.Refused == 0 {
		t.Errorf("%d done and %d refused; want about 800, and some with 100 locks of a batch out of 100 keys", s.Done, s.Refused)
	}
	r.Results = r.Results[1:]
	checkRounds(t, &r, []string{"jetstream R1 default atomic"}, 800)
}

func TestTailBesideJetstream(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	for _, client := range []string{"plain", "go"} {
		var r bench.Report
		measure(t, &r, "tail", "--client", client, "--vs", "jetstream", "--vs-sync", "default", "--count", "50", "--readers", "2")
		checkRounds(t, &r, []string{"cantus", "jetstream R1 default expected"}, 50)
		for _, res := range r.Results {
			q, after := res.Others["delivery"], res.Others["delivery after the answer"]
			if q.P50 <= 0 || q.Max < q.P50 {
				t.Errorf("%s with client %s: delivery %+v", res.Name, client, q)
			}
			if after.P50 <= 0 || after.P50 > q.P50 || after.Max > q.Max {
				t.Errorf("%s with client %s: delivery after the answer %+v, delivery %+v", res.Name, client, after, q)
			}
		}
	}
}

func TestMixedAndGetBesideJetstream(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "mixed", "--vs", "jetstream", "--vs-sync", "default", "--fill", "500", "--batch", "100", "--count", "400",
		"--conns", "2", "--in-flight", "8")
	checkRounds(t, &r, []string{"cantus", "jetstream R1 default expected"}, 400)
	for _, res := range r.Results {
		if q := res.Others["lookup"]; q.P50 <= 0 {
			t.Errorf("%s: lookups %+v", res.Name, q)
		}
	}
	measure(t, &r, "get", "--vs", "jetstream", "--fill", "500", "--batch", "100", "--count", "400", "--conns", "2", "--in-flight", "8")
	checkRounds(t, &r, []string{"cantus", "jetstream R1 default plain"}, 400)
}

// TestRateIsKept asks for a rate that every machine reaches.
func TestRateIsKept(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "append", "--vs", "jetstream", "--vs-sync", "default", "--vs-client", "go", "--locks", "0", "--rate", "500",
		"--conns", "2", "--duration", "400ms", "--warm-up", "100ms")
	for _, res := range r.Results {
		if res.Asked != 500 || res.P50 <= 0 {
			t.Errorf("%s: asked for %v a second, p50 %v ms", res.Name, res.Asked, res.P50)
		}
		// All 200 that were due within the window were sent. How many were
		// answered within it depends on the machine.
		if done := res.Rounds[0].Done; done > 250 {
			t.Errorf("%s: %d done at 500 a second in 0.4 s", res.Name, done)
		}
	}
}

// TestARateThatIsTooHighIsSaid has at most one request in flight, so that no
// machine keeps up.
func TestARateThatIsTooHighIsSaid(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	for _, client := range []string{"plain", "go"} {
		var r bench.Report
		measure(t, &r, "append", "--client", client, "--rate", "1000000", "--in-flight", "1", "--conns", "1",
			"--duration", "300ms", "--warm-up", "0s")
		if s := r.Results[0].Rounds[0]; s.Missed == 0 || r.Results[0].Max < 50 {
			t.Errorf("client %s: %d missed, longest latency %v ms; want some, and those that waited counted", client, s.Missed, r.Results[0].Max)
		}
	}
}

func TestASweepIsDrawn(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	svg := filepath.Join(t.TempDir(), "plot.svg")
	measure(t, &r, "append", "--vs", "jetstream", "--vs-sync", "default", "--sweep-in-flight", "1,8", "--svg", svg,
		"--count", "50", "--conns", "2")
	if len(r.Results) != 6 || r.Results[0].InFlight != 1 || r.Results[1].InFlight != 8 || r.Results[2].Name == "cantus" {
		t.Fatalf("%d results, want two for each of three systems: %+v", len(r.Results), r.Results)
	}
	text, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	var picture struct {
		Lines  []struct{} `xml:"polyline"`
		Points []struct{} `xml:"circle"`
		Text   []string   `xml:"text"`
	}
	if err := xml.Unmarshal(text, &picture); err != nil {
		t.Fatal(err)
	}
	if len(picture.Lines) != 6 || len(picture.Points) != 6 {
		t.Errorf("%d lines and %d points, want 6 and 6", len(picture.Lines), len(picture.Points))
	}
	if !strings.Contains(strings.Join(picture.Text, "\n"), "jetstream R1 default expected") {
		t.Errorf("no name of the peer in %q", picture.Text)
	}
}

// TestFailoverOfOneNode measures a restart as a client sees it.
func TestFailoverOfOneNode(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	for _, signal := range []string{"KILL", "TERM"} {
		var r bench.FailoverReport
		measure(t, &r, "failover", "--signal", signal, "--kills", "2", "--rate", "200", "--pause", "0s", "--warm-up", "0s", "--conns", "2",
			"--vs", "jetstream", "--vs-sync", "always")
		if len(r.Results) != 2 {
			t.Fatalf("%d results, want 2", len(r.Results))
		}
		for _, res := range r.Results {
			if len(res.Pauses) != 2 || res.Pause.Min <= 0 || res.Resent == 0 {
				t.Errorf("%s: pauses %v, %d sent again; want two, some", res.Name, res.Pauses, res.Resent)
			}
			if res.Acknowledged == 0 || res.Stored != res.Acknowledged {
				t.Errorf("%s: %d acknowledged and %d stored, want the same", res.Name, res.Acknowledged, res.Stored)
			}
		}
	}
}

func TestThreeNodes(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "append", "--nodes", "3", "--count", "300", "--conns", "3", "--in-flight", "8", "--partitions", "2")
	checkRounds(t, &r, []string{"cantus"}, 300)
	if s := r.Results[0].Rounds[0]; r.Nodes != 3 || s.RSS > 0 && len(s.Nodes) != 3 {
		t.Errorf("%d nodes, use of %d: want 3", r.Nodes, len(s.Nodes))
	}
}

func TestFailoverOfThreeNodes(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.FailoverReport
	measure(t, &r, "failover", "--nodes", "3", "--signal", "TERM", "--kills", "1", "--rate", "100", "--pause", "0s", "--warm-up", "0s")
	if res := r.Results[0]; len(res.Pauses) != 1 || res.Stored != res.Acknowledged || res.Stored == 0 {
		t.Errorf("%d pauses, %d acknowledged and %d stored; want 1, and the same", len(res.Pauses), res.Acknowledged, res.Stored)
	}
}

func TestFill(t *testing.T) {
	t.Parallel()
	var r bench.Report
	measure(t, &r, "fill", "--fill", "1000", "--batch", "100", "--unique-locks", "--partitions", "2")
	checkRounds(t, &r, []string{"cantus"}, 1000)
}

func TestTrimsBetweenRounds(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.Report
	measure(t, &r, "append", "--keep", "1", "--count", "100", "--conns", "2", "--partitions", "2")
	checkRounds(t, &r, []string{"cantus"}, 100)
	if s := r.Results[0].Rounds[0]; s.P50 <= 0 || s.Max < s.P50 {
		t.Errorf("a round's own latencies are %v and %v", s.P50, s.Max)
	}
}

func TestStartup(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	var r bench.StartupReport
	measure(t, &r, "startup", "--fill", "500", "--batch", "100")
	if r.AfterKill.Min <= 0 || r.AfterStop.Min <= 0 || len(r.Marks) != 1 || r.Marks[0] != 500 {
		t.Errorf("%+v: want times, and all 500 still there", r)
	}
}

func TestDataIsKeptAndAProfileWritten(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
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
	for name, test := range map[string]struct {
		args []string
		says string // what would be right
	}{
		"no connections":          {[]string{"append", "--conns=-1"}, "from 1 to 10000"},
		"nothing in flight":       {[]string{"append", "--in-flight=-1"}, "from 1 to 100000"},
		"payload too large":       {[]string{"append", "--size", "1000000"}, "--size"},
		"payload without a time":  {[]string{"tail", "--size", "7"}, "needs 8 bytes"},
		"too many locks":          {[]string{"append", "--locks", "65"}, "from 0 to 64"},
		"more locks than keys":    {[]string{"append", "--locks", "3", "--keys", "2"}, "not so many different"},
		"negative skew":           {[]string{"append", "--skew=-1"}, "from 0 to 10"},
		"no skew at all":          {[]string{"append", "--skew=NaN"}, "from 0 to 10"},
		"more lookups than all":   {[]string{"mixed", "--gets", "101"}, "from 0 to 100"},
		"no readers":              {[]string{"tail", "--readers=0"}, "from 1"},
		"less than nothing":       {[]string{"fill", "--fill=-5"}, "from 0 to"},
		"no time":                 {[]string{"append", "--duration", "0s"}, "--count"},
		"negative warm-up":        {[]string{"append", "--warm-up=-1s"}, "negative"},
		"negative pause":          {[]string{"failover", "--pause=-1s"}, "negative"},
		"negative rate":           {[]string{"append", "--rate=-5"}, "above 0"},
		"a rate of nothing":       {[]string{"append", "--sweep-rate", "0,100"}, "above 0"},
		"a rate of a catch-up":    {[]string{"read", "--rate", "5"}, "leave --rate"},
		"two sorts of sweep":      {[]string{"append", "--sweep-rate", "5,6", "--sweep-in-flight", "1,2"}, "one of them"},
		"a rate and a sweep":      {[]string{"append", "--rate", "5", "--sweep-in-flight", "1,2"}, "one of them"},
		"a load and a sweep":      {[]string{"append", "--in-flight", "5", "--sweep-in-flight", "1,2"}, "one of them"},
		"a sweep of nothing":      {[]string{"append", "--sweep-in-flight", "0,1"}, "from 1 to 100000"},
		"a plot of one point":     {[]string{"append", "--svg", "x.svg", "--sweep-in-flight", "1"}, "at least two"},
		"a plot at one rate":      {[]string{"append", "--svg", "x.svg", "--rate", "10", "--sweep-rate", "5"}, "one of them"},
		"a plot of a failover":    {[]string{"failover", "--svg", "x.svg"}, "no sweep"},
		"a plot of a start":       {[]string{"startup", "--svg", "x.svg"}, "no sweep"},
		"two nodes":               {[]string{"append", "--nodes", "2"}, "1, 3 or 5"},
		"a start of three nodes":  {[]string{"startup", "--nodes", "3"}, "one node"},
		"a profile of three":      {[]string{"append", "--nodes", "3", "--profile", "x"}, "one node"},
		"somebody else's nodes":   {[]string{"append", "--server", "nats://127.0.0.1:1", "--nodes", "3"}, "bench starts"},
		"somebody else's start":   {[]string{"startup", "--server", "nats://127.0.0.1:1"}, "bench starts"},
		"somebody else's leader":  {[]string{"failover", "--server", "nats://127.0.0.1:1"}, "bench starts"},
		"somebody else's data":    {[]string{"append", "--server", "nats://127.0.0.1:1", "--data", "x"}, "bench starts"},
		"no kills":                {[]string{"failover", "--kills=0"}, "from 1"},
		"a failover by count":     {[]string{"failover", "--count", "5"}, "--kills"},
		"a peer for a fill":       {[]string{"fill", "--vs", "jetstream"}, "append, batch"},
		"a reader for an append":  {[]string{"append", "--vs", "jetstream", "--vs-client", "pull"}, "plain, go or auto"},
		"an appender for a read":  {[]string{"read", "--vs", "jetstream", "--vs-client", "go"}, "pull, push or auto"},
		"a batch for a peer":      {[]string{"batch", "--vs", "jetstream", "--batch", "1001"}, "at most 1000"},
		"the Go client's lookups": {[]string{"get", "--client", "go"}, "append, read, tail"},
		"batch of too many":       {[]string{"fill", "--batch", "10001"}, "from 1 to 5000"},
		"batch of too much":       {[]string{"fill", "--batch", "5000", "--size", "1000"}, "does not fit"},
		"read of too many":        {[]string{"read", "--read-max", "65537"}, "from 1 to 65536"},
		"prefix with a wildcard":  {[]string{"append", "--prefix", "a.*"}, "prefix"},
	} {
		err := parse(t, test.args...).Run(t.Context(), io.Discard, io.Discard)
		if !errors.Is(err, bench.ErrFlags) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want ErrFlags with %q", name, err, test.says)
		}
	}
}

func TestAServerThatIsNotThereIsSaid(t *testing.T) {
	err := parse(t, "append", "--server", "nats://127.0.0.1:1").Run(t.Context(), io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "nats://127.0.0.1:1") {
		t.Errorf("%v: want an error that names the address", err)
	}
}
