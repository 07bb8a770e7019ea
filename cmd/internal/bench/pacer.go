package bench

import (
	"runtime"
	"time"
)

// pacer tells workers when requests fall due: evenly spaced, and at times that
// do not depend on answers. So a server that pauses meets all that would have
// come meanwhile, and the time that they wait counts.
type pacer struct {
	clock   *clock
	rate    float64
	workers []pacedWorker
}

const (
	// shortestNap is how long it sleeps at least: above 5,000 a second several
	// requests are sent together, rather than a thread woken for each, which on few
	// cores would cost the server more than the requests do. They are as late as
	// they are, by when they were due.
	shortestNap = 200 * time.Microsecond
	// longestNap bounds how late it notices that it is to stop.
	longestNap = 50 * time.Millisecond
)

// run returns at the clock's end, or when stop is closed.
func (p *pacer) run(stop <-chan struct{}) {
	// A thread of its own can sleep for less than the runtime's timers do,
	// which may be a millisecond late where nothing else goes on.
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
