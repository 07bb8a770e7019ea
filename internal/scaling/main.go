// Command scaling measures how the cost of an append grows with one parameter
// at a time (partitions, payload, locks, connections, the log's length), and
// draws a plot of each: `make scaling`. It runs cantus bench, which starts a
// new node for each point.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// dimension is one parameter of the benchmark.
type dimension struct {
	name, title, unit string
	values            []int
	args              func(v int) []string
}

var dimensions = []dimension{
	{"partitions", "Partitions, one node", "partitions", []int{1, 4, 16, 64}, func(v int) []string {
		return []string{"--partitions", strconv.Itoa(v)}
	}},
	{"partitions3", "Partitions, three nodes", "partitions", []int{1, 4, 16, 64}, func(v int) []string {
		return []string{"--nodes", "3", "--partitions", strconv.Itoa(v)}
	}},
	{"payload", "Payload", "bytes", []int{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10}, func(v int) []string {
		// At most 32 MiB are in flight: a node's limit is 64 MiB.
		return []string{"--size", strconv.Itoa(v), "--in-flight", strconv.Itoa(max(1, min(256, 4<<20/v)))}
	}},
	{"locks", "Write locks of a transaction", "locks", []int{0, 1, 4, 16, 64}, func(v int) []string {
		return []string{"--locks", strconv.Itoa(v), "--in-flight", strconv.Itoa(max(16, 256/max(v, 1)))}
	}},
	{"connections", "Connections, 2,048 requests in flight or one each", "connections", []int{1, 8, 64, 512, 2048, 5000}, func(v int) []string {
		return []string{"--conns", strconv.Itoa(v), "--in-flight", strconv.Itoa(max(1, 2048/v))}
	}},
	{"log", "Transactions in the log before", "transactions", []int{0, 1_000_000, 10_000_000, 50_000_000}, func(v int) []string {
		return []string{"--fill", strconv.Itoa(v)}
	}},
}

func main() {
	log.SetFlags(0)
	bin := flag.String("bin", "bin/cantus", "the binary to measure")
	out := flag.String("out", "docs/scaling", "directory for the plots and points")
	only := flag.String("only", "", "dimensions to measure, separated by commas; all if empty")
	dir := flag.String("dir", "", "parent of the data directories; the system's directory for temporary files if empty")
	redraw := flag.Bool("draw", false, "measure nothing: draw the points of an earlier run")
	rounds := flag.Int("rounds", 3, "rounds of each point; the plots show medians")
	flag.Parse()
	if err := os.MkdirAll(*out, 0o755); err != nil {
		log.Fatal(err)
	}
	for _, d := range dimensions {
		if *only != "" && !strings.Contains(","+*only+",", ","+d.name+",") {
			continue
		}
		if *redraw {
			if err := d.redraw(*out); err != nil {
				log.Fatal(err)
			}
			continue
		}
		if err := d.measure(*bin, *out, *dir, *rounds); err != nil {
			log.Fatalf("%s: %v", d.name, err)
		}
	}
}

// Point is the measurement at one value of the parameter.
type Point struct {
	Value   int     `json:"value"`
	Command string  `json:"command"`
	Rate    float64 `json:"per_second"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	CPU     float64 `json:"server_cpu_us"` // for each transaction, on all nodes
	Anon    float64 `json:"anonymous_mb"`  // of the node with the most
	Written float64 `json:"device_bytes_per_payload_byte"`
}

func (d dimension) measure(bin, out, dir string, rounds int) error {
	var points []Point
	for _, v := range d.values {
		args := append([]string{"append"}, d.args(v)...)
		args = append(args, "--rounds", strconv.Itoa(rounds), "--duration", "3s", "--warm-up", "2s")
		p := Point{Value: v, Command: "cantus bench " + strings.Join(args, " ")}
		args = append([]string{"bench"}, append(args, "--json")...)
		if dir != "" {
			args = append(args, "--dir", dir)
		}
		if err := p.run(exec.Command(bin, args...)); err != nil {
			return fmt.Errorf("%s: %w", p.Command, err)
		}
		log.Printf("%-12s %10d %10.0f/s  p50 %8.3f ms  p99 %8.3f ms  %6.1f µs  %4.0f MB", d.name, v, p.Rate, p.P50, p.P99, p.CPU, p.Anon)
		points = append(points, p)
	}
	b, err := json.MarshalIndent(points, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, d.name+".json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, d.name+".svg"), draw(d, points), 0o644)
}

// redraw draws the points of an earlier run.
func (d dimension) redraw(out string) error {
	b, err := os.ReadFile(filepath.Join(out, d.name+".json"))
	if err != nil {
		return err
	}
	var points []Point
	if err := json.Unmarshal(b, &points); err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return os.WriteFile(filepath.Join(out, d.name+".svg"), draw(d, points), 0o644)
}

// run fills the point from a report of cantus bench.
func (p *Point) run(cmd *exec.Cmd) error {
	var errs bytes.Buffer
	cmd.Stderr = &errs
	b, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, errs.Bytes())
	}
	var report struct {
		Results []struct {
			Rate    struct{ Median float64 }
			P50     float64                  `json:"p50_ms"`
			P99     float64                  `json:"p99_ms"`
			Written struct{ Median float64 } `json:"device_bytes_per_payload_byte"`
			Rounds  []struct {
				Done int
				CPU  float64 `json:"server_cpu_seconds"`
				Anon float64 `json:"rss_anon_bytes"`
			}
		}
	}
	if err := json.Unmarshal(b, &report); err != nil || len(report.Results) != 1 {
		return fmt.Errorf("malformed report: %w", err)
	}
	r := report.Results[0]
	p.Rate, p.P50, p.P99, p.Written = r.Rate.Median, r.P50, r.P99, r.Written.Median
	done := 0
	for _, round := range r.Rounds {
		done += round.Done
		p.CPU += round.CPU * 1e6
		p.Anon = max(p.Anon, round.Anon/1e6)
	}
	p.CPU /= float64(max(done, 1))
	return nil
}
