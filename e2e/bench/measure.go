package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"time"
)

// measureAll runs the rounds and prints the report.
func measureAll(ctx context.Context, o *options, out, errOut io.Writer) (err error) {
	// The load shares the processors with what it measures.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	dir, err := os.MkdirTemp(o.Dir, "cantus-etcd-")
	if err != nil {
		return fmt.Errorf("temporary directory: %w", err)
	}
	defer func() {
		if err1 := os.RemoveAll(dir); err == nil && err1 != nil {
			err = err1
		}
	}()
	c, err := startCluster(ctx, o.Members, dir)
	if err != nil {
		return err
	}
	defer c.stop()
	l, err := newLoad(o, c)
	if err != nil {
		return err
	}
	defer l.close()
	var own, peer []Sample
	for n := range o.Rounds {
		s, err := etcdRound(ctx, l, c)
		if err != nil {
			return err
		}
		peer = append(peer, s)
		fmt.Fprintf(errOut, "round %d/%d etcd: %.0f/s\n", n+1, o.Rounds, s.Rate)
		if o.Cantus == "" {
			continue
		}
		if s, err = cantusRound(ctx, o); err != nil {
			return err
		}
		own = append(own, s)
		fmt.Fprintf(errOut, "round %d/%d cantus: %.0f/s\n", n+1, o.Rounds, s.Rate)
	}
	r := newReport(o, own, peer)
	if o.JSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.table(out)
}

func etcdRound(ctx context.Context, l *load, c *cluster) (Sample, error) {
	var before, after, selfBefore, selfAfter use
	wroteBefore, known := written(c.dir)
	n, err := l.round(ctx,
		func() { before, selfBefore = useOf(c.pids()...), useOf(os.Getpid()) },
		func() { after, selfAfter = useOf(c.pids()...), useOf(os.Getpid()) })
	if err != nil {
		return Sample{}, err
	}
	o := l.options
	s := Sample{
		Seconds: o.Duration.Seconds(), Done: n.done, Refused: n.refused, Rate: float64(n.done) / o.Duration.Seconds(),
		ServerCPU: after.cpu - before.cpu, LoadCPU: selfAfter.cpu - selfBefore.cpu, RSS: after.rss, Written: -1,
	}
	if wrote, ok := written(c.dir); ok && known && n.all > 0 && o.Size > 0 {
		s.Written = float64(wrote-wroteBefore) / float64(n.all) / float64(o.Size)
	}
	if n.done > 0 {
		at := func(q float64) float64 { return float64(n.latency.ValueAtQuantile(q)) / float64(time.Millisecond) }
		s.quantiles = Quantiles{P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: at(100)}
	}
	return s, nil
}

// cantusRound runs `cantus bench` for one round with the same numbers.
func cantusRound(ctx context.Context, o *options) (Sample, error) {
	args := []string{"bench", "append", "--json", "--rounds", "1"}
	for name, value := range map[string]any{
		"nodes": o.Members, "conns": o.Conns, "in-flight": o.InFlight, "size": o.Size, "locks": o.Locks, "keys": o.Keys,
		"duration": o.Duration, "warm-up": o.WarmUp,
	} {
		args = append(args, fmt.Sprintf("--%s=%v", name, value))
	}
	if o.Dir != "" {
		args = append(args, "--dir", o.Dir)
	}
	cmd := exec.CommandContext(ctx, o.Cantus, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return Sample{}, fmt.Errorf("%s bench: %w: %s", o.Cantus, err, bytes.TrimSpace(errs.Bytes()))
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil || len(r.Results) != 1 || len(r.Results[0].Rounds) != 1 {
		return Sample{}, fmt.Errorf("%s bench printed no report of one round: %.200s", o.Cantus, out)
	}
	s := r.Results[0].Rounds[0]
	s.quantiles = r.Results[0].Quantiles
	return s, nil
}

// newReport summarizes the rounds.
func newReport(o *options, own, peer []Sample) *Report {
	r := &Report{
		Workload: "append", Started: time.Now(), CPUs: runtime.NumCPU(), Nodes: o.Members, Conns: o.Conns, Size: o.Size,
		Locks: o.Locks, Keys: o.Keys, Partitions: 1,
	}
	if len(own) > 0 {
		r.Results = append(r.Results, newResult("cantus", "plain requests",
			"synced on a majority of replicas before an answer; default settings", o, own))
	}
	etcd := newResult("etcd", "clientv3, one Txn of compares and puts",
		fmt.Sprintf("members: %d, synced on a majority before an answer; a quota of 8 GiB, other settings etcd's own", o.Members), o, peer)
	if len(own) > 0 {
		etcd.Ratio = ratio(own, peer)
	}
	r.Results = append(r.Results, etcd)
	return r
}
