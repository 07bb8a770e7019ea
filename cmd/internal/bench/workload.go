package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// The workloads.
const (
	appendLoad   = "append"
	batchLoad    = "batch"
	readLoad     = "read"
	tailLoad     = "tail"
	getLoad      = "get"
	mixedLoad    = "mixed"
	failoverLoad = "failover"
	fillLoad     = "fill"
	startupLoad  = "startup"
)

// openLoopInFlight bounds the requests in flight on a connection at a fixed
// rate: enough for a pause of some seconds.
const openLoopInFlight = 16_384

// defaults are the defaults that depend on the workload.
type defaults struct {
	conns, inFlight int
	fill            int64
}

var defaultsOf = map[string]defaults{
	appendLoad:   {8, 256, 0},
	batchLoad:    {2, 4, 0},
	readLoad:     {1, 2, 1_000_000},
	tailLoad:     {1, 1, 0},
	getLoad:      {8, 256, 1_000_000},
	mixedLoad:    {8, 256, 100_000},
	failoverLoad: {8, openLoopInFlight, 0},
	fillLoad:     {2, 4, 1_000_000},
	startupLoad:  {2, 4, 1_000_000},
}

// failoverRate is the default rate of failover.
const failoverRate = 1000

// loadLevel is the load of a round: InFlight requests on each connection, or
// Rate requests a second over all of them.
type loadLevel struct {
	InFlight int
	Rate     float64 // 0: as fast as answers come
}

func (p loadLevel) String() string {
	if p.Rate > 0 {
		return fmt.Sprintf("%g/s", p.Rate)
	}
	return fmt.Sprint(p.InFlight)
}

// workload is the load on each system; its numbers are in range.
type workload struct {
	Kind               string
	Nodes              int
	Conns              int
	Levels             []loadLevel
	Size, Locks, Keys  int
	Skew               float64
	Gets, Readers      int
	Partitions, Batch  int
	UniqueLocks        bool
	Keep, Fill         int64
	ReadMax, ReadBytes int
	Rounds             int
	limits             limits
}

// workload checks the flags and fills in defaults that depend on other flags.
func (c *Command) workload() (*workload, error) {
	w := &workload{
		Kind: c.Workload, Nodes: c.Nodes, Conns: c.Conns, Size: c.Size, Locks: c.Locks, Keys: c.Keys, Skew: c.Skew,
		Gets: c.Gets, Readers: c.Readers, Partitions: c.Partitions, Batch: c.Batch, UniqueLocks: c.UniqueLocks,
		Keep: c.Keep, Fill: c.Fill, ReadMax: c.ReadMax, ReadBytes: c.ReadBytes, Rounds: c.Rounds,
		limits: limits{warmUp: c.WarmUp, duration: c.Duration, count: c.Count},
	}
	d, ok := defaultsOf[w.Kind]
	if !ok {
		return nil, fmt.Errorf("%w: workload %q: it must be one of append, batch, read, tail, get, mixed, failover, fill, startup", ErrFlags, w.Kind)
	}
	if w.Conns == 0 {
		w.Conns = d.conns
	}
	if w.Fill == -1 { // not given
		w.Fill = d.fill
	}
	if w.Fill > 0 {
		w.Batch = int(min(int64(w.Batch), w.Fill))
	}
	w.Levels = c.levels(d)
	for _, check := range []func(*workload) error{c.checkRanges, c.checkPoints, c.checkServers, c.checkPeer, c.checkKind} {
		if err := check(w); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFlags, err)
		}
	}
	return w, nil
}

// levels returns the rounds' load levels: one, or those of a sweep.
func (c *Command) levels(d defaults) []loadLevel {
	inFlight := c.InFlight
	paced := c.InFlight
	if inFlight == 0 {
		inFlight, paced = d.inFlight, openLoopInFlight
	}
	sweep := c.SweepInFlight
	if c.SVG != "" && len(sweep)+len(c.SweepRate) == 0 {
		sweep = []int{1, 4, 16, 64, 256}
	}
	var levels []loadLevel
	for _, n := range sweep {
		levels = append(levels, loadLevel{InFlight: n})
	}
	for _, r := range c.SweepRate {
		levels = append(levels, loadLevel{InFlight: paced, Rate: r})
	}
	rate := c.Rate
	if rate == 0 && c.Workload == failoverLoad {
		rate = failoverRate
	}
	switch {
	case len(levels) > 0:
		return levels
	case rate != 0:
		return []loadLevel{{InFlight: paced, Rate: rate}}
	}
	return []loadLevel{{InFlight: inFlight}}
}

func (c *Command) checkRanges(w *workload) error {
	for _, r := range []struct {
		flag        string
		value       int64
		least, most int64
	}{
		{"--conns", int64(w.Conns), 1, 10_000},
		{"--size", int64(w.Size), 0, subjects.MaxTransaction / 2},
		{"--locks", int64(w.Locks), 0, subjects.MaxLocks},
		{"--keys", int64(w.Keys), 1, 100_000_000},
		{"--gets", int64(w.Gets), 0, 100},
		{"--readers", int64(w.Readers), 1, 1000},
		{"--partitions", int64(w.Partitions), 1, 1024},
		{"--batch", int64(w.Batch), 1, subjects.MaxBatch},
		{"--rounds", int64(w.Rounds), 1, 1000},
		{"--kills", int64(c.Kills), 1, 1000},
		{"--count", w.limits.count, 0, 1 << 40},
		{"--fill", w.Fill, 0, 1 << 40},
		{"--keep", w.Keep, 0, 1 << 50},
		{"--read-max", int64(w.ReadMax), 1, subjects.MaxReadCount},
		{"--read-bytes", int64(w.ReadBytes), 1, subjects.MaxReadBytes},
	} {
		if r.value < r.least || r.value > r.most {
			return fmt.Errorf("%s %d: it must be from %d to %d", r.flag, r.value, r.least, r.most)
		}
	}
	switch {
	case !(w.Skew >= 0 && w.Skew <= maxSkew):
		return fmt.Errorf("--skew %v: it must be from 0 to %d", w.Skew, maxSkew)
	case w.Locks > w.Keys:
		return fmt.Errorf("--locks %d out of --keys %d: there are not so many different ones", w.Locks, w.Keys)
	case w.limits.duration <= 0 && w.limits.count == 0:
		return fmt.Errorf("--duration %v: it must be above 0, or --count be given", w.limits.duration)
	case w.limits.warmUp < 0:
		return fmt.Errorf("--warm-up %v: it must not be negative", w.limits.warmUp)
	case c.Pause < 0:
		return fmt.Errorf("--pause %v: it must not be negative", c.Pause)
	case (w.Fill > 0 || w.Kind == batchLoad) && w.Batch*(w.Size+200) > subjects.MaxTransaction:
		return fmt.Errorf("--batch %d of --size %d does not fit in a message of %d bytes", w.Batch, w.Size, subjects.MaxTransaction)
	}
	return nil
}

// maxRate is the highest rate that can be asked for.
const maxRate = 10_000_000

func (c *Command) checkPoints(w *workload) error {
	given := 0
	for _, is := range []bool{c.Rate != 0, len(c.SweepInFlight) > 0, len(c.SweepRate) > 0} {
		if is {
			given++
		}
	}
	if given > 1 {
		return fmt.Errorf("--rate, --sweep-in-flight and --sweep-rate: one of them")
	}
	if len(c.SweepInFlight) > 0 && c.InFlight != 0 {
		return fmt.Errorf("--in-flight and --sweep-in-flight: one of them")
	}
	for _, p := range w.Levels {
		switch {
		case p.InFlight < 1 || p.InFlight > 100_000:
			return fmt.Errorf("%d in flight: it must be from 1 to 100000", p.InFlight)
		case !(p.Rate >= 0 && p.Rate <= maxRate) || p.Rate == 0 && given > 0 && len(c.SweepInFlight) == 0:
			return fmt.Errorf("a rate of %v a second: it must be above 0 and at most %d", p.Rate, maxRate)
		case p.Rate > 0 && (w.Kind == readLoad || w.Kind == fillLoad || w.Kind == startupLoad):
			return fmt.Errorf("%s is done as fast as it goes: leave --rate and --sweep-rate out", w.Kind)
		}
	}
	sweeping := given > 0 && c.Rate == 0 || c.SVG != ""
	switch w.Kind {
	case fillLoad, startupLoad, failoverLoad:
		if sweeping {
			return fmt.Errorf("%s has no sweep: leave --svg, --sweep-in-flight and --sweep-rate out", w.Kind)
		}
	}
	if c.SVG != "" && len(w.Levels) < 2 {
		return fmt.Errorf("--svg draws a sweep: it needs at least two values in --sweep-in-flight or --sweep-rate")
	}
	return nil
}

func (c *Command) checkServers(w *workload) error {
	if !slices.Contains([]int{1, 3, 5}, w.Nodes) {
		return fmt.Errorf("--nodes %d: it must be 1, 3 or 5", w.Nodes)
	}
	own := map[string]bool{
		"--nodes": w.Nodes > 1, "--data": c.Data != "", "--profile": c.Profile != "",
		"the startup workload": w.Kind == startupLoad, "the failover workload": w.Kind == failoverLoad,
	}
	for _, name := range []string{"--nodes", "--data", "--profile", "the startup workload", "the failover workload"} {
		if own[name] && len(c.Server) > 0 {
			return fmt.Errorf("--server is somebody else's: %s goes with nodes that bench starts", name)
		}
	}
	switch {
	case w.Nodes > 1 && w.Kind == startupLoad:
		return fmt.Errorf("startup is measured on one node: leave --nodes out")
	case w.Nodes > 1 && c.Profile != "":
		return fmt.Errorf("--profile is of one node: leave --nodes out")
	}
	return nil
}

func (c *Command) checkPeer(w *workload) error {
	vs := slices.Contains(c.Vs, "jetstream")
	switch {
	case !vs:
		return nil
	case w.Kind == fillLoad || w.Kind == startupLoad:
		return fmt.Errorf("--vs goes with append, batch, read, tail, get, mixed and failover")
	case w.Kind == batchLoad && w.Batch > maxAtomicBatch:
		return fmt.Errorf("--batch %d: JetStream's atomic batches have at most %d messages", w.Batch, maxAtomicBatch)
	}
	ordered := w.Kind == readLoad || w.Kind == tailLoad
	switch c.VsClient {
	case "pull", "push":
		if !ordered {
			return fmt.Errorf("--vs-client %s: it goes with read and tail; for %s it is plain, go or auto", c.VsClient, w.Kind)
		}
	case "plain", "go":
		if ordered {
			return fmt.Errorf("--vs-client %s: for %s it is pull, push or auto", c.VsClient, w.Kind)
		}
	}
	return nil
}

func (c *Command) checkKind(w *workload) error {
	byGo := []string{appendLoad, readLoad, tailLoad}
	switch {
	case c.Client == "go" && !slices.Contains(byGo, w.Kind):
		return fmt.Errorf("--client go: it goes with %s", strings.Join(byGo, ", "))
	case w.Kind == tailLoad && w.Size < stampSize:
		return fmt.Errorf("--size %d: tail needs %d bytes for the time at which a payload was sent", w.Size, stampSize)
	case w.Kind == failoverLoad && w.limits.count > 0:
		return fmt.Errorf("failover ends after --kills: leave --count out")
	}
	return nil
}

// fillLimits returns the limits of a fill, which ends when everything is
// appended.
func (w *workload) fillLimits() limits { return limits{count: w.Fill, duration: time.Hour} }
