package broker

import (
	"net/http"
	"net/http/pprof"
	"runtime"
	"sync"
)

// Rates at which blocking and contention are sampled while a profile of them is
// taken.
const (
	blockProfileRate  = 10_000 // nanoseconds of blocking to a sample
	mutexProfileRatio = 100    // contended locks to a sample
)

// addProfiles serves runtime/pprof's profiles below /debug/pprof/. Blocking and
// contention, which cost something to watch, are watched for as long as such a
// profile is asked for, by its parameter seconds.
func addProfiles(mux *http.ServeMux) {
	var watching sync.Mutex // one at a time
	during := func(profile string, set func(on bool)) http.HandlerFunc {
		serve := pprof.Handler(profile)
		return func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("seconds") == "" {
				http.Error(w, "say for how long to watch, such as ?seconds=10", http.StatusBadRequest)
				return
			}
			watching.Lock()
			defer watching.Unlock()
			set(true)
			defer set(false)
			serve.ServeHTTP(w, r)
		}
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/block", during("block", func(on bool) {
		runtime.SetBlockProfileRate(when(on, blockProfileRate))
	}))
	mux.HandleFunc("GET /debug/pprof/mutex", during("mutex", func(on bool) {
		runtime.SetMutexProfileFraction(when(on, mutexProfileRatio))
	}))
}

func when(on bool, n int) int {
	if on {
		return n
	}
	return 0
}
