package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// FailoverReport is what `cantus bench failover --json` prints.
type FailoverReport struct {
	Nodes   int              `json:"nodes"`
	Signal  string           `json:"signal"`
	Rate    float64          `json:"rate"`
	Size    int              `json:"size"`
	Results []FailoverResult `json:"results"`
	Notes   []string         `json:"notes,omitempty"`
}

// FailoverResult is the result of one system.
type FailoverResult struct {
	Name     string `json:"name"`
	Settings string `json:"settings"`
	// Pauses are the longest gaps between acknowledged appends after each kill,
	// in seconds. Pause summarizes them.
	Pauses []float64 `json:"pauses_seconds"`
	Pause  Spread    `json:"pause_seconds"`
	// Quantiles are the latencies of appends from when they were due to when
	// they were acknowledged, with all resends.
	Quantiles
	// Acknowledged counts the acknowledged appends; each has an id of its own.
	// Stored counts those in the log: the same, if nothing was lost or done
	// twice.
	Acknowledged uint64 `json:"acknowledged"`
	Stored       uint64 `json:"stored"`
	// Resent counts how often appends were sent again.
	Resent uint64 `json:"resent"`
}

// resumeTimeout is how long a cluster may take to take appends again.
const resumeTimeout = 2 * time.Minute

// gaps measures the time between acknowledged appends, over all connections.
type gaps struct {
	mu     sync.Mutex
	last   int64 // when the last acknowledgement arrived
	newest int64 // when the newest acknowledged append was due
	worst  int64
}

// ack records that an append due at due was acknowledged at now.
func (g *gaps) ack(due, now int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last > 0 {
		g.worst = max(g.worst, now-g.last)
	}
	g.last, g.newest = max(g.last, now), max(g.newest, due)
}

// take returns the longest gap since it was last called.
func (g *gaps) take() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	worst := g.worst
	g.worst = 0
	return time.Duration(worst)
}

// answered reports whether an append due after at was acknowledged.
func (g *gaps) answered(at int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.newest > at
}

// failover ends the leader again and again under a steady load.
func (s *benchRun) failover(ctx context.Context) error {
	r := &FailoverReport{Nodes: s.workload.Nodes, Signal: s.Signal, Rate: s.workload.Levels[0].Rate, Size: s.workload.Size}
	own, err := s.cantusCluster(ctx)
	if err != nil {
		return err
	}
	res, err := s.suffer(ctx, own, cantusTarget{s.names})
	if err != nil {
		return fmt.Errorf("cantus: %w", err)
	}
	r.Results = append(r.Results, *res)
	if slices.Contains(s.Vs, "jetstream") {
		if err := s.stopAll(own); err != nil {
			return err
		}
		for _, sync := range s.VsSync {
			res, err := s.peerFailover(ctx, sync)
			if err != nil {
				return err
			}
			r.Results = append(r.Results, *res)
		}
	}
	r.Notes = s.notes
	return s.printFailover(r)
}

// stopAll ends a cluster, so that the next one has the machine to itself.
func (s *benchRun) stopAll(c *cluster) error {
	for _, srv := range c.nodes {
		if err := srv.stop(); err != nil {
			return err
		}
	}
	return nil
}

func (s *benchRun) peerFailover(ctx context.Context, sync string) (*FailoverResult, error) {
	c, err := s.startJetstream(ctx, sync)
	if err != nil {
		return nil, err
	}
	st, err := s.openStreams(ctx, c, streamKind{name: "plain"}, pool{})
	if err != nil {
		return nil, err
	}
	c.leader = streamLeader(c, st)
	res, err := s.suffer(ctx, c, streamTarget{s, c, st})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	res.Settings = peerSettings(s.workload.Nodes, sync)
	return res, s.stopAll(c)
}

// suffer puts a steady load on a cluster, ends its leader as often as the flags
// say, and returns what clients saw.
func (s *benchRun) suffer(ctx context.Context, c *cluster, t target) (*FailoverResult, error) {
	before, err := t.stored(ctx, c)
	if err != nil {
		return nil, err
	}
	w := s.workload
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	load, err := newSteadyLoad(c, t, w, cancel)
	if err != nil {
		return nil, err
	}
	defer load.close()
	load.start()
	res := &FailoverResult{Name: c.name}
	if err := s.pauses(ctx, c, load, res); err != nil {
		return nil, err
	}
	if err := load.finish(ctx); err != nil {
		return nil, err
	}
	after, err := t.stored(ctx, c)
	if err != nil {
		return nil, err
	}
	res.Pause = spread(res.Pauses)
	res.Quantiles = quantiles(load.latency())
	res.Acknowledged, res.Resent, res.Stored = load.acknowledged(), load.resent(), after-before
	return res, nil
}

// pauses ends the leader, waits, restarts it, and waits again.
func (s *benchRun) pauses(ctx context.Context, c *cluster, load *steadyLoad, res *FailoverResult) error {
	if err := load.awaitAnswer(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, s.WarmUp); err != nil {
		return err
	}
	for n := range s.Kills {
		if err := c.lead(ctx); err != nil {
			return err
		}
		victim := c.first
		load.gaps.take()
		if err := s.end(c.nodes[victim]); err != nil {
			return err
		}
		// If there are other nodes, the node restarts after one of them has
		// taken over, so that the pause does not include its start.
		if len(c.nodes) > 1 {
			if err := load.awaitAnswer(ctx); err != nil {
				return err
			}
		}
		if err := s.restart(ctx, c, victim); err != nil {
			return err
		}
		if err := load.awaitAnswer(ctx); err != nil {
			return err
		}
		if err := sleep(ctx, s.Pause); err != nil {
			return err
		}
		pause := load.gaps.take()
		res.Pauses = append(res.Pauses, pause.Seconds())
		fmt.Fprintf(s.errOut, "%s %d/%d: %s ended by SIG%s, pause %v\n",
			c.name, n+1, s.Kills, nodeName(victim), s.Signal, pause.Round(100*time.Microsecond))
	}
	return nil
}

// end ends a node with the signal of the flags.
func (s *benchRun) end(srv *server) error {
	if s.Signal == "TERM" {
		return srv.stop()
	}
	srv.kill()
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *benchRun) printFailover(r *FailoverReport) error {
	if s.JSON {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(s.out, "failover: %s, %g appends a second of %d bytes, the leader ended by SIG%s\n\n", count(r.Nodes, "node"), r.Rate, r.Size, r.Signal)
	t := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tKILLS\tPAUSE MEDIAN\tBEST\tWORST\tAPPEND P50 MS\tP99 MS\tMAX MS\tSENT AGAIN\tACKNOWLEDGED\tSTORED")
	for _, res := range r.Results {
		fmt.Fprintf(t, "%s\t%d\t%.3f s\t%.3f s\t%.3f s\t%.3f\t%.1f\t%.1f\t%d\t%d\t%d\n", res.Name, len(res.Pauses),
			res.Pause.Median, res.Pause.Min, res.Pause.Max, res.P50, res.P99, res.Max, res.Resent, res.Acknowledged, res.Stored)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "\nPAUSE: the longest gap between acknowledged appends from one kill to the next. An append's latency is from when it was")
	fmt.Fprintln(s.out, "due to when it was acknowledged, sent again with its message id as often as it took. ACKNOWLEDGED and STORED are the")
	fmt.Fprintln(s.out, "same if nothing was lost or stored twice.")
	for _, res := range r.Results {
		if res.Settings != "" {
			fmt.Fprintf(s.out, "%s: %s\n", res.Name, res.Settings)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(s.out, n)
	}
	return nil
}
