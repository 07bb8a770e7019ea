package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Report is the output, with the names of `cantus bench --json`.
type Report struct {
	Workload   string    `json:"workload"`
	Started    time.Time `json:"started"`
	CPUs       int       `json:"cpus"`
	Nodes      int       `json:"nodes"`
	Conns      int       `json:"conns"`
	Size       int       `json:"size"`
	Locks      int       `json:"locks"`
	Keys       int       `json:"keys"`
	Partitions int       `json:"partitions"`
	Results    []Result  `json:"results"`
}

// Result is the rounds of etcd or Cantus.
type Result struct {
	Name     string `json:"name"`
	Client   string `json:"client"`
	Settings string `json:"settings"`
	InFlight int    `json:"in_flight"`
	Rate     Spread `json:"rate"`
	Quantiles
	Ratio   *Spread  `json:"ratio,omitempty"`
	Written *Spread  `json:"device_bytes_per_payload_byte,omitempty"`
	Rounds  []Sample `json:"rounds"`
}

// Quantiles are latencies in milliseconds.
type Quantiles struct {
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	P999 float64 `json:"p99_9_ms"`
	Max  float64 `json:"max_ms"`
}

// Sample is one round. Written is negative if unknown.
type Sample struct {
	Seconds   float64 `json:"seconds"`
	Done      uint64  `json:"done"`
	Refused   uint64  `json:"refused"`
	Rate      float64 `json:"rate"`
	ServerCPU float64 `json:"server_cpu_seconds"`
	LoadCPU   float64 `json:"load_cpu_seconds"`
	RSS       int64   `json:"rss_bytes"`
	Written   float64 `json:"device_bytes_per_payload_byte"`

	quantiles Quantiles
}

// Spread is the median and the range of several rounds.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spread summarizes values. It returns nil if there are none.
func spread(values []float64) *Spread {
	if len(values) == 0 {
		return nil
	}
	v := slices.Sorted(slices.Values(values))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return &Spread{Median: mid, Min: v[0], Max: v[len(v)-1]}
}

func newResult(name, client, settings string, o *options, rounds []Sample) Result {
	over := func(value func(Sample) float64) float64 {
		var all []float64
		for _, s := range rounds {
			all = append(all, value(s))
		}
		return spread(all).Median
	}
	r := Result{Name: name, Client: client, Settings: settings, InFlight: o.InFlight, Rounds: rounds}
	var rates, written []float64
	for _, s := range rounds {
		rates = append(rates, s.Rate)
		if s.Written >= 0 {
			written = append(written, s.Written)
		}
	}
	r.Rate, r.Written = *spread(rates), spread(written)
	r.P50 = over(func(s Sample) float64 { return s.quantiles.P50 })
	r.P90 = over(func(s Sample) float64 { return s.quantiles.P90 })
	r.P99 = over(func(s Sample) float64 { return s.quantiles.P99 })
	r.P999 = over(func(s Sample) float64 { return s.quantiles.P999 })
	r.Max = over(func(s Sample) float64 { return s.quantiles.Max })
	return r
}

// ratio divides Cantus's rate by etcd's, round by round. It returns nil if etcd
// did nothing.
func ratio(own, peer []Sample) *Spread {
	var ratios []float64
	for i := range min(len(own), len(peer)) {
		if peer[i].Rate > 0 {
			ratios = append(ratios, own[i].Rate/peer[i].Rate)
		}
	}
	return spread(ratios)
}

// table prints the report for a person.
func (r *Report) table(out io.Writer) error {
	fmt.Fprintf(out, "%s: %d connections, %d-byte payloads, %d nodes, %d write locks out of %d keys; %d processors\n\n",
		r.Workload, r.Conns, r.Size, r.Nodes, r.Locks, r.Keys, r.CPUs)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tLOAD\tPER SECOND\tMIN – MAX\tP50 MS\tP99 MS\tP99.9 MS\tMAX MS\tREFUSED\tSERVER µs\tLOAD µs\tRSS MB\tDISK B/B\tCANTUS ×\tMIN – MAX")
	for _, res := range r.Results {
		res.row(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nThe columns are those of cantus bench; latencies are medians of the rounds'.")
	for _, res := range r.Results {
		fmt.Fprintf(out, "%s: %s\n  %s\n", res.Name, res.Client, res.Settings)
	}
	return nil
}

func (r *Result) row(out io.Writer) {
	var done, refused uint64
	var server, load float64
	var rss int64
	for _, s := range r.Rounds {
		done, refused = done+s.Done, refused+s.Refused
		server, load, rss = server+s.ServerCPU, load+s.LoadCPU, max(rss, s.RSS)
	}
	each := float64(max(done, 1)) / 1e6
	disk, times, ends := "-", "-", "-"
	if r.Written != nil {
		disk = fmt.Sprintf("%.2f", r.Written.Median)
	}
	if r.Ratio != nil {
		times, ends = fmt.Sprintf("%.2f", r.Ratio.Median), fmt.Sprintf("%.2f – %.2f", r.Ratio.Min, r.Ratio.Max)
	}
	fmt.Fprintf(out, "%s\t%d\t%.0f\t%.0f – %.0f\t%.3f\t%.3f\t%.3f\t%.1f\t%d\t%.2f\t%.2f\t%d\t%s\t%s\t%s\n",
		r.Name, r.InFlight, r.Rate.Median, r.Rate.Min, r.Rate.Max, r.P50, r.P99, r.P999, r.Max, refused,
		server/each, load/each, rss>>20, disk, times, ends)
}
