package bench

import (
	"runtime"
	"time"
)

// openLoop calls workers when requests are due: at evenly spaced times that do
// not depend on answers. So requests that are due during a pause of the server
// count with the time that they wait.
type openLoop struct {
	clock   *clock
	rate    float64
	workers []openLoopWorker
}

const (
	// shortestNap is the shortest sleep. Above 5,000 requests a second several
	// are sent together: on few cores, waking a thread for each would cost the
	// server more than the requests do. Their latency counts from when they
	// were due.
	shortestNap = 200 * time.Microsecond
	// longestNap bounds how late the loop notices that it must stop.
	longestNap = 50 * time.Millisecond
)

// run returns at the clock's end, or when stop is closed.
func (p *openLoop) run(stop <-chan struct{}) {
	// A thread of its own can sleep more precisely than the runtime's timers,
	// which may be a millisecond late in an idle process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() {
		for _, w := range p.workers {
			w.finish()
		}
	}()
	interval := float64(time.Second) / p.rate
	for i := 0; ; i++ {
		at := int64(float64(i) * interval)
		if at >= p.clock.until || p.clock.spent() {
			return
		}
		for wait := at - p.clock.now(); wait > 0; wait = at - p.clock.now() {
			nap(min(max(time.Duration(wait), shortestNap), longestNap))
			if stopped(stop) {
				return
			}
		}
		if i%1024 == 0 && stopped(stop) {
			return
		}
		p.workers[i%len(p.workers)].due(at)
	}
}

func stopped(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}
