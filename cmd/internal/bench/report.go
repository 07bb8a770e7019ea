package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// Report is what `cantus bench --json` prints.
type Report struct {
	Workload   string    `json:"workload"`
	Started    time.Time `json:"started"`
	CPUs       int       `json:"cpus"`
	Conns      int       `json:"conns"`
	InFlight   int       `json:"in_flight"`
	Size       int       `json:"size"`
	Locks      int       `json:"locks"`
	Keys       int       `json:"keys"`
	Partitions int       `json:"partitions"`
	Results    []Result  `json:"results"`
	Notes      []string  `json:"notes,omitempty"`
}

// Result is one contestant's rounds.
type Result struct {
	Name   string `json:"name"`
	Client string `json:"client"`
	// Rate is in transactions a second.
	Rate Spread `json:"rate"`
	// Latencies in milliseconds, over all rounds.
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
	// Ratio is Cantus's rate divided by this one's, round by round; missing
	// for Cantus.
	Ratio *Spread `json:"ratio,omitempty"`
	// Written is device bytes for each payload byte; missing where unknown.
	Written *Spread  `json:"device_bytes_per_payload_byte,omitempty"`
	Rounds  []Sample `json:"rounds"`
}

// Spread is the middle and the ends of several rounds.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spread summarizes values, of which there must be one.
func spread(values []float64) Spread {
	v := slices.Sorted(slices.Values(values))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return Spread{Median: mid, Min: v[0], Max: v[len(v)-1]}
}

func (s *sitting) report(contestants []*contestant, samples [][]Sample) *Report {
	w := s.workload
	r := &Report{
		Workload: w.Kind, Started: time.Now(), CPUs: runtime.NumCPU(), Conns: w.Conns, InFlight: w.InFlight,
		Size: w.Size, Locks: w.Locks, Keys: w.Keys, Partitions: w.Partitions, Notes: s.notes,
	}
	for i, c := range contestants {
		result := newResult(c.name, c.clients[0].name, samples[i])
		if i > 0 {
			result.Ratio = ratio(samples[0], samples[i])
		}
		r.Results = append(r.Results, result)
	}
	return r
}

func newResult(name, client string, samples []Sample) Result {
	all := newLatencies()
	var rates, written []float64
	for _, s := range samples {
		all.merge(s.latency)
		rates = append(rates, s.Rate)
		if s.Written >= 0 {
			written = append(written, s.Written)
		}
	}
	r := Result{
		Name: name, Client: client, Rate: spread(rates), Rounds: samples,
		P50: milliseconds(all.quantile(50)), P99: milliseconds(all.quantile(99)), Max: milliseconds(all.max()),
	}
	if len(written) > 0 {
		w := spread(written)
		r.Written = &w
	}
	return r
}

// ratio compares rounds of the same turn; nil if a peer did nothing.
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

func (s *sitting) print(r *Report) error {
	if s.JSON {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.table(s.out)
}

// table prints the report for a person.
func (r *Report) table(out io.Writer) error {
	fmt.Fprintf(out, "%s: %d connections × %d in flight, %d-byte payloads", r.Workload, r.Conns, r.InFlight, r.Size)
	if r.Workload == appendLoad {
		fmt.Fprintf(out, ", %d write locks out of %d keys, %d partitions", r.Locks, r.Keys, r.Partitions)
	}
	fmt.Fprintf(out, "; %d processors\n\n", r.CPUs)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tPER SECOND\tMIN – MAX\tP50 MS\tP99 MS\tMAX MS\tREFUSED\tSERVER µs\tLOAD µs\tRSS MB\tANON MB\tDISK B/B\tCANTUS ×\tMIN – MAX")
	for _, res := range r.Results {
		res.row(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nSERVER µs and LOAD µs: processor time for each transaction. DISK B/B: bytes that the device wrote per byte of")
	fmt.Fprintln(out, "payload, over the whole round and a sync after it. CANTUS ×: Cantus's rate divided by this one's, round by round.")
	for _, res := range r.Results {
		fmt.Fprintf(out, "%s: %s\n", res.Name, res.Client)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(out, n)
	}
	return nil
}

func (r *Result) row(out io.Writer) {
	var done, refused uint64
	var server, load float64
	var rss, anon int64
	for _, s := range r.Rounds {
		done, refused = done+s.Done, refused+s.Refused
		server, load = server+s.ServerCPU, load+s.LoadCPU
		rss, anon = max(rss, s.RSS), max(anon, s.Anon)
	}
	each := func(seconds float64) string {
		if done == 0 || seconds == 0 {
			return "-"
		}
		return fmt.Sprintf("%.2f", seconds*1e6/float64(done))
	}
	size := func(bytes int64) string {
		if bytes == 0 {
			return "-"
		}
		return fmt.Sprint(bytes >> 20)
	}
	written, times, ends := "-", "-", "-"
	if r.Written != nil {
		written = fmt.Sprintf("%.2f", r.Written.Median)
	}
	if r.Ratio != nil {
		times, ends = fmt.Sprintf("%.2f", r.Ratio.Median), fmt.Sprintf("%.2f – %.2f", r.Ratio.Min, r.Ratio.Max)
	}
	fmt.Fprintf(out, "%s\t%.0f\t%.0f – %.0f\t%.3f\t%.3f\t%.1f\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
		r.Name, r.Rate.Median, r.Rate.Min, r.Rate.Max, r.P50, r.P99, r.Max, share(refused, done),
		each(server), each(load), size(rss), size(anon), written, times, ends)
}

// share gives refusals as a number and as a share of all answers.
func share(refused, done uint64) string {
	if refused == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%.2f%%)", refused, 100*float64(refused)/float64(refused+done))
}
