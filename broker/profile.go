package broker

import (
	"net"
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

// addProfiles serves runtime/pprof's profiles below /debug/pprof/ of a listener
// on loopback. Blocking and contention, which cost something to watch, are
// watched for as long as such a profile is asked for, by its parameter seconds.
func addProfiles(mux *http.ServeMux, address string) {
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
	for name, handler := range map[string]http.HandlerFunc{
		"":        pprof.Index,
		"profile": pprof.Profile,
		"trace":   pprof.Trace,
		"block":   during("block", func(on bool) { runtime.SetBlockProfileRate(when(on, blockProfileRate)) }),
		"mutex":   during("mutex", func(on bool) { runtime.SetMutexProfileFraction(when(on, mutexProfileRatio)) }),
	} {
		mux.HandleFunc("GET /debug/pprof/"+name, localOnly(address, handler))
	}
	mux.HandleFunc("/debug/pprof/", getOnly)
}

// localOnly refuses requests that a web page could make. A page whose own name
// resolves to this machine sends that name as the host, and one that asks for a
// local address is of another site.
func localOnly(address string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site")
		if !isLocalHost(r.Host, address) || site != "" && site != "none" && site != "same-origin" {
			http.Error(w, "profiles are for this machine: ask for them at http://"+address, http.StatusForbidden)
			return
		}
		next(w, r)
	}
}

// isLocalHost reports whether a Host header names this machine, or the
// listener's own address.
func isLocalHost(host, address string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host // without a port
	}
	own, _, _ := net.SplitHostPort(address)
	switch name {
	case "localhost", "127.0.0.1", "::1", "[::1]", own:
		return true
	}
	return false
}

func when(on bool, n int) int {
	if on {
		return n
	}
	return 0
}
