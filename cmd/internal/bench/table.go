package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// table prints the report for a person.
func (r *Report) table(out io.Writer) error {
	fmt.Fprintln(out, r.headline())
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tLOAD\tPER SECOND\tMIN – MAX\tP50 MS\tP99 MS\tP99.9 MS\tMAX MS\tREFUSED\tSERVER µs\tLOAD µs\tRSS MB\tANON MB\tDISK B/B\tCANTUS ×\tMIN – MAX")
	for i := range r.Results {
		r.Results[i].row(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nLOAD: requests in flight on a connection, or requests a second that fell due. SERVER µs and LOAD µs: processor time")
	fmt.Fprintln(out, "for each transaction, of all nodes and of bench, which is also seconds for a million. RSS and ANON: the largest node.")
	fmt.Fprintln(out, "DISK B/B: bytes that the device wrote, for all nodes, per byte of payload, over the whole round and a sync after it.")
	fmt.Fprintln(out, "CANTUS ×: Cantus's rate divided by this one's, round by round.")
	r.details(out)
	for _, n := range r.Notes {
		fmt.Fprintln(out, n)
	}
	return nil
}

// headline describes the workload.
func (r *Report) headline() string {
	text := fmt.Sprintf("%s: %d connections, %d-byte payloads, %s", r.Workload, r.Conns, r.Size, count(r.Nodes, "node"))
	switch r.Workload {
	case appendLoad, batchLoad, mixedLoad, tailLoad:
		text += fmt.Sprintf(", %s out of %s", count(r.Locks, "write lock"), count(r.Keys, "key"))
		if r.Skew > 0 {
			text += fmt.Sprintf(" with a skew of %g", r.Skew)
		}
	}
	return text + fmt.Sprintf(", %s; %s", count(r.Partitions, "partition"), count(r.CPUs, "processor"))
}

// details prints each system's settings, and the figures for which the table
// has no column.
func (r *Report) details(out io.Writer) {
	said := map[string]bool{}
	for i, res := range r.Results {
		if !said[res.Name] {
			said[res.Name] = true
			fmt.Fprintf(out, "%s: %s\n", res.Name, res.Client)
		}
		if last := i == len(r.Results)-1; res.Settings != "" && (last || r.Results[i+1].Settings != res.Settings) {
			fmt.Fprintf(out, "  %s\n", res.Settings)
		}
		for _, name := range slices.Sorted(maps.Keys(res.Others)) {
			q := res.Others[name]
			fmt.Fprintf(out, "%s at %s, %s: p50 %.3f ms, p99 %.3f ms, p99.9 %.3f ms, max %.1f ms\n",
				res.Name, res.load(), name, q.P50, q.P99, q.P999, q.Max)
		}
		var missed, unknown, silent uint64
		for _, s := range res.Rounds {
			missed, unknown, silent = missed+s.Missed, unknown+s.Unknown, silent+s.Silent
		}
		if unknown+silent > 0 {
			fmt.Fprintf(out, "%s at %s: whether they were done was left open by the answer to %d requests; %d had none for %v\n",
				res.Name, res.load(), unknown, silent, answerLimit)
		}
		if missed > 0 {
			fmt.Fprintf(out, "%s at %s: %d requests had fallen due and were not done when the rounds ended: it does not keep up, and latencies are at least those shown\n",
				res.Name, res.load(), missed)
		}
	}
}

func (r *Result) load() string {
	return loadLevel{InFlight: r.InFlight, Rate: r.Asked}.String()
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
	fmt.Fprintf(out, "%s\t%s\t%.0f\t%.0f – %.0f\t%.3f\t%.3f\t%.3f\t%.1f\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
		r.Name, r.load(), r.Rate.Median, r.Rate.Min, r.Rate.Max, r.P50, r.P99, r.P999, r.Max, share(refused, done),
		each(server), each(load), size(rss), size(anon), written, times, ends)
}

// share returns refusals as a number and as a share of all answers.
func share(refused, done uint64) string {
	if refused == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%.2f%%)", refused, 100*float64(refused)/float64(refused+done))
}

// count returns a number and its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
