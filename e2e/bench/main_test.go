package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary be a member, and stand for a cantus that
// prints a report.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case memberVerb:
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "bench":
			fmt.Println(`{"results":[{"p50_ms":2,"rounds":[{"done":10,"rate":1000000}]}]}`)
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func measure(t *testing.T, args ...string) *Report {
	t.Helper()
	var out, errOut bytes.Buffer
	args = append(args, "--json", "--dir", t.TempDir(), "--rounds", "2", "--duration", "300ms", "--warm-up", "100ms")
	if err := run(t.Context(), args, &out, &errOut); err != nil {
		t.Fatalf("%v\n%s", err, &errOut)
	}
	var r Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
	return &r
}

func TestThreeMembersBesideCantus(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := measure(t, "--members", "3", "--conns", "3", "--in-flight", "2", "--keys", "1000", "--cantus", self)
	if len(r.Results) != 2 || r.Results[0].Name != "cantus" || r.Results[0].P50 != 2 {
		t.Fatalf("%+v: want cantus with its own quantiles, and etcd", r.Results)
	}
	etcd := r.Results[1]
	if etcd.Rate.Min <= 0 || etcd.P50 <= 0 || etcd.Ratio == nil || etcd.Ratio.Median <= 1 {
		t.Errorf("%+v: want a rate, latencies, and a ratio to a million a second", etcd)
	}
}

func TestHotKeysAreRefusedAndGetThrough(t *testing.T) {
	r := measure(t, "--conns", "2", "--in-flight", "4", "--keys", "2")
	for _, s := range r.Results[0].Rounds {
		if s.Done == 0 || s.Refused == 0 {
			t.Errorf("%d done, %d refused; want some of both", s.Done, s.Refused)
		}
	}
}

func TestBadFlagsAreRefused(t *testing.T) {
	for args, says := range map[string]string{
		"--members 2":        "1, 3 or 5",
		"--locks 3 --keys 2": "not so many different",
		"--locks 0":          "from 1 to 64",
		"--duration 0s":      "above 0",
		"append":             "only flags",
		"--no-such":          "no-such",
	} {
		err := run(t.Context(), strings.Fields(args), io.Discard, io.Discard)
		if !errors.Is(err, errFlags) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want a refusal with %q", args, err, says)
		}
	}
}

func TestTableShowsBoth(t *testing.T) {
	o := &options{InFlight: 4}
	own := []Sample{{Done: 1000, Rate: 300, ServerCPU: 0.5, RSS: 5 << 20, Written: 1.5}}
	peer := []Sample{{Done: 1000, Rate: 100, Written: -1}}
	var b strings.Builder
	if err := newReport(o, own, peer).table(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cantus 4 300 300 – 300 0.000 0.000 0.000 0.0 0 500.00 0.00 5 1.50 - -",
		"etcd 4 100 100 – 100 0.000 0.000 0.000 0.0 0 0.00 0.00 0 - 3.00 3.00 – 3.00",
	} {
		found := false
		for line := range strings.Lines(b.String()) {
			found = found || strings.Join(strings.Fields(line), " ") == want
		}
		if !found {
			t.Errorf("no row %q in\n%s", want, &b)
		}
	}
}
