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

// sitting is one run of bench: the servers that take part, and what they do.
type sitting struct {
	*Command
	workload *workload
	names    subjects.Names
	out      io.Writer
	errOut   io.Writer

	servers []*server // started here, ended by close
	temp    string    // removed by close
	filled  int       // makes the lock names of each fill its own
	notes   []string
}

func (s *sitting) run(ctx context.Context) error {
	switch s.workload.Kind {
	case startupLoad:
		return s.startup(ctx)
	case failoverLoad:
		return s.failover(ctx)
	}
	contestants, err := s.contestants(ctx)
	if err != nil {
		return err
	}
	for _, c := range contestants {
		if err := s.chooseClient(ctx, c); err != nil {
			return err
		}
	}
	samples, err := s.measureAll(ctx, contestants)
	if err != nil {
		return err
	}
	r := s.report(contestants, samples)
	if s.SVG != "" {
		if err := os.WriteFile(s.SVG, r.plot(), 0o644); err != nil {
			return fmt.Errorf("plot: %w", err)
		}
	}
	return s.print(r)
}

// measureAll measures each contestant at each point in turns, and gives the
// samples by contestant, point and round.
func (s *sitting) measureAll(ctx context.Context, contestants []*contestant) ([][][]Sample, error) {
	w := s.workload
	samples := make([][][]Sample, len(contestants))
	for i := range samples {
		samples[i] = make([][]Sample, len(w.Points))
	}
	for n := range w.Rounds {
		for p, point := range w.Points {
			for i, c := range contestants {
				label := fmt.Sprintf("round %d/%d %s", n+1, w.Rounds, c.name)
				if len(w.Points) > 1 {
					label += " at " + point.String()
				}
				sample, err := measure(ctx, task{label, w.Conns, point, w.Size, w.limits}, c, c.clients[0], s.errOut)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", label, err)
				}
				samples[i][p] = append(samples[i][p], sample)
			}
		}
	}
	return samples, nil
}

// close ends what was started. Its servers have nothing to lose.
func (s *sitting) close() {
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

func (s *sitting) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.notes = append(s.notes, text)
	fmt.Fprintln(s.errOut, text)
}

// chooseClient leaves a contestant the quickest of its clients, as tried at
// the sitting's heaviest load.
func (s *sitting) chooseClient(ctx context.Context, c *contestant) error {
	if len(c.clients) < 2 {
		return nil
	}
	lim := limits{warmUp: min(s.WarmUp, time.Second), duration: min(s.Duration, 3*time.Second)}
	if s.Count > 0 {
		lim = limits{count: s.Count}
	}
	heaviest := s.workload.Points[len(s.workload.Points)-1]
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

// tempDir makes a directory that is removed at the end.
func (s *sitting) tempDir(name string) (string, error) {
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
