// Plants tries the simulation on defects: it plants one in a copy of the
// source, and runs seeds there until one fails.
//
//	go run ./internal/sim/plants [-runs N] [-again N] [-list] [NAME...]
//
// It runs in the root of the repository. Without names it tries all defects.
// The repository itself, and so what is built from it, stays as it is.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// runTimeout ends a run that hangs: that is a way of finding a defect.
const runTimeout = 4 * time.Minute

func main() {
	runs := flag.Int("runs", 100, "seeds to try for each defect")
	again := flag.Int("again", 0, "how often to repeat the seed that fails, to see how often it fails again")
	list := flag.Bool("list", false, "list the defects and exit")
	flag.Parse()
	missed := 0
	for _, d := range defects {
		if flag.NArg() > 0 && !slices.Contains(flag.Args(), d.name) {
			continue
		}
		if *list {
			fmt.Printf("%-28s %s\n", d.name, d.what)
			continue
		}
		outcome, found, err := d.try(*runs, *again)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", d.name, err)
			os.Exit(1)
		}
		if !found {
			missed++
		}
		fmt.Printf("%-28s %s\n", d.name, outcome)
	}
	if missed > 0 {
		fmt.Printf("%d defects were not found\n", missed)
		os.Exit(3)
	}
}

// try plants the defect and runs seeds until one fails.
func (d defect) try(runs, again int) (outcome string, found bool, err error) {
	dir, err := os.MkdirTemp("", "plant")
	if err != nil {
		return "", false, err
	}
	defer os.RemoveAll(dir)
	if err := copySource(dir); err != nil {
		return "", false, err
	}
	if err := d.plant(dir); err != nil {
		return "", false, err
	}
	binary := filepath.Join(dir, "simulation")
	if out, err := command(context.Background(), dir, "go", "test", "-trimpath", "-c", "-o", binary, "./"+d.simulation().folder).CombinedOutput(); err != nil {
		return "", false, fmt.Errorf("build: %w\n%s", err, out)
	}
	began := time.Now()
	for seed := 1; seed <= runs; seed++ {
		why, failed := d.run(dir, binary, seed)
		if !failed {
			continue
		}
		outcome = fmt.Sprintf("found by seed %d after %.1f s: %s", seed, time.Since(began).Seconds(), why)
		if again > 0 {
			outcome = fmt.Sprintf("%d of %d again; %s", d.repeat(dir, binary, seed, again), again, outcome)
		}
		return outcome, true, nil
	}
	return fmt.Sprintf("not found in %d runs, %.0f s", runs, time.Since(began).Seconds()), false, nil
}

// repeat runs a seed some times more, and returns how often it fails.
func (d defect) repeat(dir, binary string, seed, times int) (failures int) {
	for range times {
		if _, failed := d.run(dir, binary, seed); failed {
			failures++
		}
	}
	return failures
}

// run runs one seed, and returns the first line that says what failed.
func (d defect) run(dir, binary string, seed int) (why string, failed bool) {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	c := command(ctx, filepath.Join(dir, d.simulation().folder), binary, "-test.run", "^"+d.simulation().test+"$")
	c.Env = append(os.Environ(), fmt.Sprint("CANTUS_SIM_SEED=", seed))
	out, err := c.CombinedOutput()
	if err == nil {
		return "", false
	}
	if ctx.Err() != nil {
		return "it hangs", true
	}
	for line := range strings.Lines(string(out)) {
		if _, text, ok := strings.Cut(line, "runs.go:"); ok {
			_, text, _ = strings.Cut(text, ": ")
			return strings.TrimSpace(text), true
		}
		if strings.HasPrefix(line, "panic: ") {
			return strings.TrimSpace(line), true
		}
	}
	return err.Error(), true
}

func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	return c
}

// copySource copies the files that git knows to a directory.
func copySource(dir string) error {
	names, err := exec.Command("git", "ls-files", "-z", "*.go", "*go.mod", "*go.sum").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for name := range bytes.SplitSeq(bytes.TrimRight(names, "\x00"), []byte{0}) {
		b, err := os.ReadFile(string(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		to := filepath.Join(dir, string(name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o700)
		}
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// plant makes the defect's edits under a directory.
func (d defect) plant(dir string) error {
	for _, e := range d.edits {
		path := filepath.Join(dir, e.file)
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := strings.Count(string(b), e.old); n != 1 {
			return fmt.Errorf("%s has %q %d times, want once", e.file, e.old, n)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(b), e.old, e.now, 1)), 0o600); err != nil {
			return err
		}
	}
	return nil
}
