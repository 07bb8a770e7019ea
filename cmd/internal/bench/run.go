package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// benchRun is one run of bench, with the servers that it has started.
type benchRun struct {
	*Command
	workload *workload
	names    subjects.Names
	out      io.Writer
	errOut   io.Writer

	servers []*server // started by this run, ended by close
	temp    string    // removed by close
	filled  int       // makes the lock names of each fill unique
	notes   []string
}

func (s *benchRun) run(ctx context.Context) error {
	switch s.workload.Kind {
	case startupLoad:
		return s.startup(ctx)
	case failoverLoad:
		return s.failover(ctx)
	}
	systems, err := s.systems(ctx)
	if err != nil {
		return err
	}
	for _, c := range systems {
		if err := s.chooseClient(ctx, c); err != nil {
			return err
		}
	}
	samples, err := s.measureAll(ctx, systems)
	if err != nil {
		return err
	}
	r := s.report(systems, samples)
	if s.SVG != "" {
		if err := os.WriteFile(s.SVG, r.plot(), 0o644); err != nil {
			return fmt.Errorf("plot: %w", err)
		}
	}
	return s.print(r)
}

// measureAll measures the systems in turns at each load level, and returns the
// samples by system, load level and round.
func (s *benchRun) measureAll(ctx context.Context, systems []*system) ([][][]Sample, error) {
	w := s.workload
	samples := make([][][]Sample, len(systems))
	for i := range samples {
		samples[i] = make([][]Sample, len(w.Levels))
	}
	for n := range w.Rounds {
		for p, level := range w.Levels {
			for i, c := range systems {
				label := fmt.Sprintf("round %d/%d %s", n+1, w.Rounds, c.name)
				if len(w.Levels) > 1 {
					label += " at " + level.String()
				}
				sample, err := measure(ctx, task{label, w.Conns, level, w.Size, w.limits}, c, c.clients[0], s.errOut)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", label, err)
				}
				samples[i][p] = append(samples[i][p], sample)
			}
		}
	}
	return samples, nil
}

// close kills the servers and removes temporary files.
func (s *benchRun) close() {
	for _, srv := range s.servers {
		if srv.down() {
			continue
		}
		if err := srv.stop(); err != nil && !errors.Is(err, ErrServer) {
			fmt.Fprintln(s.errOut, err)
		}
	}
	if s.temp != "" {
		if err := os.RemoveAll(s.temp); err != nil {
			fmt.Fprintln(s.errOut, err)
		}
	}
}

func (s *benchRun) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.notes = append(s.notes, text)
	fmt.Fprintln(s.errOut, text)
}

// chooseClient keeps only the fastest of a system's clients, as measured at the
// run's highest load level.
func (s *benchRun) chooseClient(ctx context.Context, c *system) error {
	if len(c.clients) < 2 {
		return nil
	}
	lim := limits{warmUp: min(s.WarmUp, time.Second), duration: min(s.Duration, 3*time.Second)}
	if s.Count > 0 {
		lim = limits{count: s.Count}
	}
	heaviest := s.workload.Levels[len(s.workload.Levels)-1]
	rates := make([]float64, len(c.clients))
	best := 0
	for i, cl := range c.clients {
		sample, err := measure(ctx, task{"trying " + c.name + " with " + cl.name, s.workload.Conns, heaviest, 0, lim}, c, cl, s.errOut)
		if err != nil {
			return err
		}
		if rates[i] = sample.Rate; sample.Rate > rates[best] {
			best = i
		}
	}
	for i, cl := range c.clients {
		if i != best {
			s.note("%s: %s did %.0f/s and %s %.0f/s: the first is used",
				c.name, c.clients[best].name, rates[best], cl.name, rates[i])
		}
	}
	c.clients = c.clients[best : best+1]
	return nil
}

// tempDir makes a directory that close removes.
func (s *benchRun) tempDir(name string) (string, error) {
	if s.temp == "" {
		dir, err := os.MkdirTemp(s.Dir, "cantus-bench-")
		if err != nil {
			return "", fmt.Errorf("temporary directory: %w", err)
		}
		s.temp = dir
	}
	dir := filepath.Join(s.temp, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("temporary directory: %w", err)
	}
	return dir, nil
}
