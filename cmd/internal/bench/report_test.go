package bench

import (
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		in   []float64
		want Spread
	}{
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{9, 1, 2}, Spread{2, 1, 9}},
		{[]float64{4, 1, 2, 9}, Spread{3, 1, 9}},
	} {
		if got := spread(test.in); got != test.want {
			t.Errorf("%v: %+v, want %+v", test.in, got, test.want)
		}
	}
}

func TestRatioComparesRoundsOfOneTurn(t *testing.T) {
	own := []Sample{{Rate: 100}, {Rate: 300}, {Rate: 90}}
	peer := []Sample{{Rate: 50}, {Rate: 100}, {Rate: 90}}
	if got := ratio(own, peer); got == nil || *got != (Spread{2, 1, 3}) {
		t.Errorf("got %+v, want 2 (1 to 3)", got)
	}
	if got := ratio(own, []Sample{{}, {}, {}}); got != nil {
		t.Errorf("a peer that did nothing: %+v, want nil", got)
	}
}

func TestTableShowsEachServer(t *testing.T) {
	l := newLatencies()
	l.record(2 * time.Millisecond)
	lookups := newLatencies()
	lookups.record(3 * time.Millisecond)
	none := [ops]*latencies{newLatencies(), newLatencies(), newLatencies(), newLatencies()}
	cantus := Sample{Rate: 1000, Done: 10_000, Seconds: 10, ServerCPU: 0.1, LoadCPU: 0.05, RSS: 64 << 20, Anon: 32 << 20,
		Written: 1.5, Refused: 100, Missed: 7,
		latency: [ops]*latencies{l, lookups, newLatencies(), newLatencies()}}
	peer := Sample{Rate: 500, Done: 5000, Written: -1, latency: none}
	r := &Report{Workload: appendLoad, Conns: 8, Nodes: 3, Size: 256, Locks: 1, Keys: 10, Partitions: 1, CPUs: 2,
		Notes: []string{"a note"}}
	r.Results = []Result{newResult("cantus", "plain", []Sample{cantus}), newResult("peer", "js", []Sample{peer})}
	r.Results[0].InFlight, r.Results[1].InFlight = 256, 256
	r.Results[1].Ratio = ratio([]Sample{cantus}, []Sample{peer})
	var b strings.Builder
	if err := r.table(&b); err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(b.String()) {
		fields := strings.Fields(line)
		if len(fields) > 3 && rows[fields[0]] == "" {
			rows[fields[0]] = strings.Join(fields, " ")
		}
	}
	want := "cantus 256 1000 1000 – 1000 2.001 2.001 2.001 2.0 100 (0.99%) 10.00 5.00 64 32 1.50 - -"
	if rows["cantus"] != want {
		t.Errorf("row %q,\nwant %q", rows["cantus"], want)
	}
	want = "peer 256 500 500 – 500 0.000 0.000 0.000 0.0 0 - - - - - 2.00 2.00 – 2.00"
	if rows["peer"] != want {
		t.Errorf("row %q,\nwant %q", rows["peer"], want)
	}
	for _, want := range []string{
		"a note", "3 nodes, 1 write lock out of 10 keys, 1 partition; 2 processors",
		"cantus at 256, lookup: p50 3.0", "cantus at 256: 7 requests had fallen due",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &b)
		}
	}
}

func TestUsageIsReadFromProc(t *testing.T) {
	stat := "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0 100 0 0"
	status := "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\n"
	want := usage{Known: true, CPU: 2 * time.Second, RSS: 2 << 20, Anon: 1 << 20}
	if got := parseUsage(stat, status); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := parseUsage("42 (x) S 1", status); got.Known {
		t.Errorf("cut short: %+v, want unknown", got)
	}
}

func TestDeviceBytesAreReadFromDiskstats(t *testing.T) {
	stats := "   7       0 loop0 0 0 0 0 0 0 9 0 0 0 0\n 254       0 vda 12588 4316 933986 4769 1909 25312 1034728 2508 0 2608\n"
	if n, ok := parseDiskstats(stats, device{major: 254, known: true}); n != 1034728*512 || !ok {
		t.Errorf("%d, %v; want %d, true", n, ok, 1034728*512)
	}
	if _, ok := parseDiskstats(stats, device{major: 8, known: true}); ok {
		t.Error("a device that is not there: want false")
	}
}

func TestPoolPicksDifferentKeys(t *testing.T) {
	p := newPool("k", 12, 3)
	if p.name(0) != "k00" || p.name(11) != "k11" {
		t.Errorf("names %q and %q, want k00 and k11", p.name(0), p.name(11))
	}
	keys := make([]int, 12)
	p.pick(newRand(1), keys)
	seen := map[int]bool{}
	for _, k := range keys {
		seen[k] = true
	}
	if len(seen) != 12 {
		t.Errorf("picked %v: not all different", keys)
	}
}
