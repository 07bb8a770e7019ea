package bench

import (
	"fmt"
	"slices"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// The workloads.
const (
	appendLoad  = "append"
	readLoad    = "read"
	fillLoad    = "fill"
	startupLoad = "startup"
)

// workload is what is asked of each contestant; its numbers are in range.
type workload struct {
	Kind               string
	Conns, InFlight    int
	Size, Locks, Keys  int
	Partitions, Batch  int
	UniqueLocks        bool
	Fill               int64
	ReadMax, ReadBytes int
	Rounds             int
	limits             limits
}

// workload checks the flags, and fills in the defaults that depend on others.
func (c *Command) workload() (*workload, error) {
	w := &workload{
		Kind: c.Workload, Conns: c.Conns, InFlight: c.InFlight, Size: c.Size, Locks: c.Locks, Keys: c.Keys,
		Partitions: c.Partitions, Batch: c.Batch, UniqueLocks: c.UniqueLocks, Fill: c.Fill, ReadMax: c.ReadMax,
		ReadBytes: c.ReadBytes, Rounds: c.Rounds,
		limits: limits{warmUp: c.WarmUp, duration: c.Duration, count: c.Count},
	}
	byKind := map[string]struct {
		conns, inFlight int
		fill            int64
	}{
		appendLoad: {8, 256, 0}, readLoad: {1, 2, 1_000_000}, fillLoad: {2, 4, 1_000_000}, startupLoad: {2, 4, 1_000_000},
	}
	d, ok := byKind[w.Kind]
	if !ok {
		return nil, fmt.Errorf("%w: workload %q: append, read, fill or startup", ErrFlags, w.Kind)
	}
	if w.Conns == 0 {
		w.Conns = d.conns
	}
	if w.InFlight == 0 {
		w.InFlight = d.inFlight
	}
	if w.Fill < 0 {
		w.Fill = d.fill
	}
	if w.Fill > 0 {
		w.Batch = int(min(int64(w.Batch), w.Fill))
	}
	return w, c.check(w)
}

func (c *Command) check(w *workload) error {
	for _, r := range []struct {
		flag        string
		value       int64
		least, most int64
	}{
		{"--conns", int64(w.Conns), 1, 10_000},
		{"--in-flight", int64(w.InFlight), 1, 100_000},
		{"--size", int64(w.Size), 0, subjects.MaxTransaction / 2},
		{"--locks", int64(w.Locks), 0, subjects.MaxLocks},
		{"--keys", int64(w.Keys), 1, 100_000_000},
		{"--partitions", int64(w.Partitions), 1, 1024},
		{"--batch", int64(w.Batch), 1, subjects.MaxBatch},
		{"--rounds", int64(w.Rounds), 1, 1000},
		{"--count", w.limits.count, 0, 1 << 40},
		{"--fill", w.Fill, 0, 1 << 40},
		{"--read-max", int64(w.ReadMax), 1, subjects.MaxReadCount},
		{"--read-bytes", int64(w.ReadBytes), 1, subjects.MaxReadBytes},
	} {
		if r.value < r.least || r.value > r.most {
			return fmt.Errorf("%w: %s %d: it must be from %d to %d", ErrFlags, r.flag, r.value, r.least, r.most)
		}
	}
	vs := slices.Contains(c.Vs, "jetstream")
	switch {
	case w.Locks > w.Keys:
		return fmt.Errorf("%w: --locks %d out of --keys %d: there are not so many different ones", ErrFlags, w.Locks, w.Keys)
	case w.limits.duration <= 0 && w.limits.count == 0:
		return fmt.Errorf("%w: --duration %v: it must be above 0, or --count be given", ErrFlags, w.limits.duration)
	case w.limits.warmUp < 0:
		return fmt.Errorf("%w: --warm-up %v: it must not be negative", ErrFlags, w.limits.warmUp)
	case vs && (w.Kind == fillLoad || w.Kind == startupLoad):
		return fmt.Errorf("%w: --vs goes with append and read only", ErrFlags)
	case c.Server != "" && w.Kind == startupLoad:
		return fmt.Errorf("%w: startup starts the node itself: leave --server out", ErrFlags)
	case c.Server != "" && (c.Data != "" || c.Profile != ""):
		return fmt.Errorf("%w: --server is somebody else's: --data and --profile go with a node that bench starts", ErrFlags)
	case w.Batch*(w.Size+200) > subjects.MaxTransaction:
		return fmt.Errorf("%w: --batch %d of --size %d does not fit in a message of %d bytes",
			ErrFlags, w.Batch, w.Size, subjects.MaxTransaction)
	}
	return nil
}

// fillLimits ends a fill when all is appended.
func (w *workload) fillLimits() limits { return limits{count: w.Fill, duration: time.Hour} }
