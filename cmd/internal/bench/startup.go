package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// StartupReport is the output of `cantus bench startup --json`. Times are from
// the start of the process to its ready line, in seconds. The page cache is
// warm: the files were written or read shortly before.
type StartupReport struct {
	Filled     int64   `json:"filled"`
	Size       int     `json:"size"`
	Partitions int     `json:"partitions"`
	AfterKill  Spread  `json:"after_kill_seconds"`
	AfterStop  Spread  `json:"after_stop_seconds"`
	RSS        int64   `json:"rss_bytes"`
	Anon       int64   `json:"rss_anon_bytes"`
	Marks      []int64 `json:"high_water_marks"`
	Rounds     int     `json:"rounds"`
}

// startup fills a node, then stops and kills it in turns and measures how long
// it takes until it is ready again.
func (s *benchRun) startup(ctx context.Context) error {
	c, err := s.cantusCluster(ctx)
	if err != nil {
		return err
	}
	if s.workload.Fill > 0 {
		if err := s.fill(ctx, c); err != nil {
			return err
		}
	}
	r := &StartupReport{
		Filled: s.workload.Fill, Size: s.workload.Size, Partitions: s.workload.Partitions, Rounds: s.workload.Rounds,
	}
	var killed, stopped []float64
	for range s.workload.Rounds {
		c.nodes[0].kill()
		if err := s.comeBack(ctx, c, "killed", &killed, r); err != nil {
			return err
		}
		if err := c.nodes[0].stop(); err != nil {
			return err
		}
		if err := s.comeBack(ctx, c, "stopped", &stopped, r); err != nil {
			return err
		}
	}
	marks, err := highWaterMarks(ctx, c.url(0), s.names, s.workload.Partitions)
	if err != nil {
		return err
	}
	for _, m := range marks {
		r.Marks = append(r.Marks, int64(m))
	}
	r.AfterKill, r.AfterStop = spread(killed), spread(stopped)
	return s.printStartup(r)
}

func (s *benchRun) comeBack(ctx context.Context, c *cluster, how string, times *[]float64, r *StartupReport) error {
	if err := s.restart(ctx, c, 0); err != nil {
		return fmt.Errorf("start of the node that was %s: %w", how, err)
	}
	srv := c.nodes[0]
	u := srv.usage()
	r.RSS, r.Anon = max(r.RSS, u.RSS), max(r.Anon, u.Anon)
	*times = append(*times, srv.ready.Seconds())
	fmt.Fprintf(s.errOut, "%s: ready after %v\n", how, srv.ready.Round(time.Millisecond))
	return nil
}

func (s *benchRun) printStartup(r *StartupReport) error {
	if s.JSON {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	_, err := fmt.Fprintf(s.out, `startup: from the start of the process to its ready line, %d rounds, high-water marks %v, caches not dropped
after a kill    %.2f s (%.2f – %.2f)
after a stop    %.2f s (%.2f – %.2f)
resident when ready, at most: %d MB, %d MB of them anonymous
`, r.Rounds, r.Marks, r.AfterKill.Median, r.AfterKill.Min, r.AfterKill.Max,
		r.AfterStop.Median, r.AfterStop.Min, r.AfterStop.Max, r.RSS>>20, r.Anon>>20)
	return err
}
