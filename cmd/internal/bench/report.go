package bench

import (
	"encoding/json"
	"runtime"
	"slices"
	"time"
)

// Report is what `cantus bench --json` prints.
type Report struct {
	Workload   string    `json:"workload"`
	Started    time.Time `json:"started"`
	CPUs       int       `json:"cpus"`
	Nodes      int       `json:"nodes"`
	Conns      int       `json:"conns"`
	Size       int       `json:"size"`
	Locks      int       `json:"locks"`
	Keys       int       `json:"keys"`
	Skew       float64   `json:"skew"`
	Partitions int       `json:"partitions"`
	// Results are by system, and for each by load level.
	Results []Result `json:"results"`
	Notes   []string `json:"notes,omitempty"`
}

// Result is the result of one system's rounds at one load level.
type Result struct {
	Name     string `json:"name"`
	Client   string `json:"client"`
	Settings string `json:"settings"`
	// InFlight is the most requests in flight on a connection. Asked is the
	// requests a second that were due, 0 in a closed loop.
	InFlight int     `json:"in_flight"`
	Asked    float64 `json:"asked_rate,omitempty"`
	// Rate is in transactions a second.
	Rate Spread `json:"rate"`
	Quantiles
	// Others are other latencies: of lookups between appends, and from an
	// append to its readers.
	Others map[string]Quantiles `json:"other_latencies,omitempty"`
	// Ratio is Cantus's rate divided by this one, round by round; missing for
	// Cantus.
	Ratio *Spread `json:"ratio,omitempty"`
	// Written is device bytes for each payload byte; missing if unknown.
	Written *Spread  `json:"device_bytes_per_payload_byte,omitempty"`
	Rounds  []Sample `json:"rounds"`
}

// Quantiles are latencies in milliseconds, over all rounds.
type Quantiles struct {
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	P999 float64 `json:"p99_9_ms"`
	Max  float64 `json:"max_ms"`
}

func quantiles(l *latencies) Quantiles {
	return Quantiles{
		P50: milliseconds(l.quantile(50)), P90: milliseconds(l.quantile(90)), P99: milliseconds(l.quantile(99)),
		P999: milliseconds(l.quantile(99.9)), Max: milliseconds(l.max()),
	}
}

// Spread is the median and the range of several rounds.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spread summarizes values, which must not be empty.
func spread(values []float64) Spread {
	v := slices.Sorted(slices.Values(values))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return Spread{Median: mid, Min: v[0], Max: v[len(v)-1]}
}

// report summarizes samples, which are by system, load level and round.
func (s *benchRun) report(systems []*system, samples [][][]Sample) *Report {
	w := s.workload
	r := &Report{
		Workload: w.Kind, Started: time.Now(), CPUs: runtime.NumCPU(), Nodes: w.Nodes, Conns: w.Conns,
		Size: w.Size, Locks: w.Locks, Keys: w.Keys, Skew: w.Skew, Partitions: w.Partitions, Notes: s.notes,
	}
	for i, c := range systems {
		for p, level := range w.Levels {
			result := newResult(c.name, c.clients[0].name, samples[i][p])
			result.Settings, result.InFlight, result.Asked = c.settings, level.InFlight, level.Rate
			if i > 0 {
				result.Ratio = ratio(samples[0][p], samples[i][p])
			}
			r.Results = append(r.Results, result)
		}
	}
	return r
}

func newResult(name, client string, samples []Sample) Result {
	var all [ops]*latencies
	for o := range all {
		all[o] = newLatencies()
	}
	var rates, written []float64
	for _, s := range samples {
		for o := range all {
			all[o].merge(s.latency[o])
		}
		rates = append(rates, s.Rate)
		if s.Written >= 0 {
			written = append(written, s.Written)
		}
	}
	r := Result{Name: name, Client: client, Rate: spread(rates), Rounds: samples, Quantiles: quantiles(all[mainOp])}
	for o, name := range map[op]string{lookupOp: "lookup", deliveryOp: "delivery", afterOp: "delivery after the answer"} {
		if all[o].count() > 0 {
			if r.Others == nil {
				r.Others = map[string]Quantiles{}
			}
			r.Others[name] = quantiles(all[o])
		}
	}
	if len(written) > 0 {
		w := spread(written)
		r.Written = &w
	}
	return r
}

// ratio compares rounds of the same turn. It returns nil if a peer did nothing.
func ratio(own, peer []Sample) *Spread {
	var ratios []float64
	for i := range min(len(own), len(peer)) {
		if peer[i].Rate > 0 {
			ratios = append(ratios, own[i].Rate/peer[i].Rate)
		}
	}
	if len(ratios) == 0 {
		return nil
	}
	s := spread(ratios)
	return &s
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (s *benchRun) print(r *Report) error {
	if s.JSON {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.table(s.out)
}
