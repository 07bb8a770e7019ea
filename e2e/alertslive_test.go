//go:build alertslive && linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/ports"
)

const (
	alertRules = "../deploy/prometheus/alerts.yml"
	// Of a rule's times a thousandth is left, but not less than shortest: some
	// scrapes, which are a second apart.
	shorter  = 1000
	shortest = 5 * time.Second
)

var (
	// A time of a rule is its "for", the window of a range, an offset, or a
	// number of seconds. How slow a commit may be is none of these.
	ruleTimes = regexp.MustCompile(`(for: |\[|offset )(\d+[smhd])|\b(3600|300)\b`)
	ruleNames = regexp.MustCompile(`(?m)^ +- alert: (\w+)$`)
)

// shorten replaces the times of rules by shorter ones.
func shorten(rules string) string {
	return ruleTimes.ReplaceAllStringFunc(rules, func(m string) string {
		found := ruleTimes.FindStringSubmatch(m)
		if found[3] != "" {
			seconds, _ := strconv.Atoi(found[3])
			return strconv.Itoa(int(shortened(time.Duration(seconds) * time.Second).Seconds()))
		}
		number, _ := strconv.Atoi(found[2][:len(found[2])-1])
		unit := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}[found[2][len(found[2])-1]]
		return fmt.Sprintf("%s%dms", found[1], shortened(time.Duration(number)*unit).Milliseconds())
	})
}

func shortened(d time.Duration) time.Duration { return max(d/shorter, shortest) }

// checkShortened checks that two files of rules differ in their times only.
func checkShortened(t *testing.T, rules, short string) {
	t.Helper()
	masked := ruleTimes.ReplaceAllString(rules, "${1}TIME")
	shortTimes := regexp.MustCompile(`(for: |\[|offset )(\d+ms)|\b(` + strconv.Itoa(int(shortest.Seconds())) + `)\b`)
	if got := shortTimes.ReplaceAllString(short, "${1}TIME"); got != masked {
		t.Fatalf("the shortened rules differ in more than their times:\n%s\nwant\n%s", got, masked)
	}
	if strings.Count(masked, "TIME") < strings.Count(rules, "for: ")+strings.Count(rules, "[") {
		t.Fatalf("a \"for\" or a range was not shortened:\n%s", short)
	}
}

// prometheus is a Prometheus that scrapes what it is told to each second.
type prometheus struct {
	url     string
	targets string // the file with them

	mu   sync.Mutex
	jobs map[string]map[string]string // addresses by job and instance
}

// startPrometheus starts a Prometheus with rules. Without one in the path it
// takes Debian's, and installs nothing.
func startPrometheus(t *testing.T, rules string) *prometheus {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		program = debianPrometheus(t)
	}
	dir := t.TempDir()
	address := ports.Free(t)
	p := &prometheus{url: "http://" + address, targets: filepath.Join(dir, "targets.json"), jobs: map[string]map[string]string{}}
	p.write(t)
	config := `
global: {scrape_interval: 1s, scrape_timeout: 900ms, evaluation_interval: 1s}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: cantus
    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]
`
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "alerts.yml"), []byte(rules), 0o600),
		os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	log := &tail{}
	cmd := exec.Command(program, "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", address, "--query.lookback-delta", "5s", "--log.level", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = errors.Join(cmd.Process.Kill(), cmd.Wait())
		if t.Failed() {
			t.Logf("the last log lines of Prometheus:\n%s", log)
		}
	})
	p.until(t, "Prometheus is ready", func() string {
		_, err := p.get("/-/ready")
		return said(err)
	})
	return p
}

// debianPrometheus returns the program of Debian's package, which it unpacks.
func debianPrometheus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	get := exec.CommandContext(t.Context(), "sh", "-c",
		"apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; } && dpkg -x prometheus_*.deb .")
	get.Dir = dir
	if out, err := get.CombinedOutput(); err != nil {
		t.Fatalf("there is no prometheus, nor Debian's package: %v\n%s", err, out)
	}
	return filepath.Join(dir, "usr", "bin", "prometheus")
}

func said(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// scrape has it scrape the instances of a job, in place of those before.
func (p *prometheus) scrape(t *testing.T, job string, instances map[string]string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.jobs[job] = instances
	p.write(t)
}

// leave has it scrape nothing more of a job.
func (p *prometheus) leave(t *testing.T, job string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.jobs, job)
	p.write(t)
}

func (p *prometheus) write(t *testing.T) {
	t.Helper()
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	all := []group{}
	for job, instances := range p.jobs {
		for instance, address := range instances {
			all = append(all, group{[]string{address}, map[string]string{"job": job, "instance": instance}})
		}
	}
	text, err := json.Marshal(all)
	if err == nil {
		err = errors.Join(os.WriteFile(p.targets+".new", text, 0o600), os.Rename(p.targets+".new", p.targets))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (p *prometheus) get(path string) ([]byte, error) {
	r, err := http.Get(p.url + path)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %s", path, r.StatusCode, text)
	}
	return text, err
}

// series is a time series in an answer of Prometheus: an instant vector's has
// one value, a range's several.
type series struct {
	Metric map[string]string
	Value  point
	Values []point
}

type point struct {
	at    time.Time
	value float64
}

// UnmarshalJSON reads a pair of a Unix time and a number in a string.
func (v *point) UnmarshalJSON(b []byte) error {
	var seconds float64
	var text string
	if err := json.Unmarshal(b, &[]any{&seconds, &text}); err != nil {
		return err
	}
	v.at = time.UnixMilli(int64(seconds * 1000))
	var err error
	v.value, err = strconv.ParseFloat(text, 64)
	return err
}

// query asks for the value of an expression now.
func (p *prometheus) query(t *testing.T, expression string) []series {
	t.Helper()
	text, err := p.get("/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Data struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	var all []series
	if err = json.Unmarshal(text, &answer); err == nil {
		err = json.Unmarshal(answer.Data.Result, &all)
	}
	if err != nil {
		t.Fatalf("%s: %v: %s", expression, err, text)
	}
	return all
}

// alertPatience is how long a test waits for an alert: the longest window of a
// rule has to pass before one is resolved.
const alertPatience = 2 * patience

// until calls missing twice a second until it returns "".
func (p *prometheus) until(t *testing.T, what string, missing func() string) {
	t.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(alertPatience); ; {
		why := missing()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not so after %v: %s: %s", alertPatience, what, why)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-tick.C:
		}
	}
}

// live is an alert that is seen on processes that run, which are a job of their
// own in Prometheus.
type live struct {
	*testing.T
	prometheus *prometheus
	alert      string
	job        string
	began      time.Time // when Prometheus was told of the job

	cluster   *cluster
	disks     map[string]disk   // by node
	instances map[string]string // addresses of what is scraped, by name
	may       []string          // other alerts that may fire, but need not
	took      string            // how long it took until the alert was pending, firing, resolved
}

// nodes starts a cluster whose nodes are scraped, each on a file system of its
// own: other processes write to the machine's.
func (l *live) nodes(count int, args ...string) *cluster {
	l.Helper()
	c := &cluster{tb: sequential{l.T}, common: append([]string{"--partitions", "1", "--reserve", "64MiB"}, args...), routes: map[string]string{}}
	c.disks = func(name string) string {
		l.disks[name] = newDisk(l.T, "tmpfs", "2G")
		return filepath.Join(l.disks[name].path, "data")
	}
	if count == 1 { // a node alone
		c.nodes = append(c.nodes, newNode(l.T, "n1", c.disks("n1"), append([]string{"--listen", ports.Free(l.T)}, c.common...)...))
	} else {
		c.found(count)
	}
	for _, n := range c.nodes {
		l.scraped(n)
	}
	c.startAll()
	if count > 1 {
		c.awaitPlaced()
	}
	l.cluster = c
	return c
}

// scraped gives a node an HTTP port at which it is scraped.
func (l *live) scraped(n *node) {
	l.instances[n.name] = ports.Free(l.T)
	n.args = append(n.args, "--http", l.instances[n.name])
}

// watch has Prometheus scrape everything, and waits until all is well there.
func (l *live) watch() {
	l.Helper()
	l.began = time.Now()
	l.prometheus.scrape(l.T, l.job, maps.Clone(l.instances))
	l.prometheus.until(l.T, "everything is scraped and there is no alert", func() string {
		up := l.prometheus.query(l.T, fmt.Sprintf("up{job=%q} == 1", l.job))
		if len(up) != len(l.instances) {
			return fmt.Sprintf("%d of %d are up", len(up), len(l.instances))
		}
		return strings.Join(l.alerts(""), ", ")
	})
}

// alerts returns the alerts of the job that match, with their states.
func (l *live) alerts(matching string) (names []string) {
	l.Helper()
	for _, s := range l.prometheus.query(l.T, fmt.Sprintf("ALERTS{job=%q,%s}", l.job, matching)) {
		names = append(names, fmt.Sprint(s.Metric["alertname"], " ", s.Metric["alertstate"], " ", s.Metric["instance"], s.Metric["partition"]))
	}
	slices.Sort(names)
	return names
}

// raise makes a fault, and waits until its alert has fired, with labels that
// are given as for a query, and every other alert that it causes. Then it
// repairs the fault, waits until no alert is left, and checks that no other has
// fired.
func (l *live) raise(labels string, fault, repair func(), also ...string) {
	l.Helper()
	l.watch()
	made := time.Now()
	fault()
	expected := append([]string{l.alert}, also...)
	l.prometheus.until(l.T, "the alerts fire", func() string {
		for i, name := range expected {
			matching := fmt.Sprintf("alertname=%q", name)
			if i == 0 {
				matching += "," + labels
			}
			if len(l.fired(made, matching)) == 0 { // perhaps no longer
				return fmt.Sprintf("%s {%s} is not among %q", name, matching, l.alerts(""))
			}
		}
		return ""
	})
	pending, firing := l.first(made, labels)
	repaired := time.Now()
	repair()
	l.prometheus.until(l.T, "the alerts are resolved", func() string { return strings.Join(l.alerts(""), ", ") })
	l.took = fmt.Sprintf("pending after %s, firing after %s, resolved after %s", pending, firing, round(time.Since(repaired)))
	l.checkOthers(expected)
	l.prometheus.leave(l.T, l.job)
}

func round(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }

// first returns how long after the fault the alert was first pending and first
// firing. An alert whose rule has no "for" is firing at once.
func (l *live) first(made time.Time, labels string) (pending, firing string) {
	l.Helper()
	at := map[string]time.Time{}
	for _, s := range l.prometheus.query(l.T, fmt.Sprintf("ALERTS{job=%q,alertname=%q,%s}[10m]", l.job, l.alert, labels)) {
		for _, v := range s.Values {
			state := s.Metric["alertstate"]
			if v.at.After(made.Truncate(time.Second)) && (at[state].IsZero() || v.at.Before(at[state])) {
				at[state] = v.at
			}
		}
	}
	firing = round(at["firing"].Sub(made))
	if !l.waits() {
		return firing, firing
	}
	if at["pending"].IsZero() || !at["pending"].Before(at["firing"]) {
		l.Errorf("%s is pending at %v, and firing at %v", l.alert, at["pending"], at["firing"])
	}
	return round(at["pending"].Sub(made)), firing
}

// waits reports whether the alert's rule has a "for".
func (l *live) waits() bool {
	l.Helper()
	rules, err := os.ReadFile(alertRules)
	if err != nil {
		l.Fatal(err)
	}
	_, rule, _ := strings.Cut(string(rules), "- alert: "+l.alert+"\n")
	rule, _, _ = strings.Cut(rule, "- alert: ")
	return strings.Contains(rule, " for: ")
}

// fired returns the alerts of the job that match and have been firing since a
// time.
func (l *live) fired(since time.Time, matching string) []series {
	l.Helper()
	return l.prometheus.query(l.T, fmt.Sprintf("ALERTS{job=%q,alertstate=\"firing\",%s}[%ds]", l.job, matching, int(time.Since(since).Seconds())+1))
}

// checkOthers checks that no alert has fired since the beginning that was not
// expected.
func (l *live) checkOthers(expected []string) {
	l.Helper()
	for _, s := range l.fired(l.began, "") {
		if name := s.Metric["alertname"]; !slices.Contains(expected, name) && !slices.Contains(l.may, name) {
			l.Errorf("%s was firing too, for %d s: %v", name, len(s.Values), s.Metric)
		}
	}
}

// runbook runs a command of the alert's runbook, in which names may be
// replaced, and returns what it prints. It must end with status 0.
func (l *live) runbook(line string, replace ...string) string {
	l.Helper()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		l.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n### "+l.alert+"\n")
	section, _, _ = strings.Cut(section, "\n### ")
	if !regexp.MustCompile(`(?m)^ {4,}` + regexp.QuoteMeta(line) + `$`).MatchString(section) {
		l.Fatalf("docs/operations.md does not say %q about %s", line, l.alert)
	}
	return l.command(strings.NewReplacer(replace...).Replace(line))
}

// command runs a command against the cluster, which must end with status 0.
func (l *live) command(line string) string {
	l.Helper()
	args := strings.Fields(line)[1:]
	if !strings.HasPrefix(line, "cantus backup verify") { // which asks no cluster
		args = append(args, "--server", l.cluster.url())
	}
	code, stdout, stderr := cantus(l.T, args...)
	if code != 0 {
		l.Fatalf("%s ends with %d\n%s%s", line, code, stdout, stderr)
	}
	return stdout
}

// process starts a command with metrics, which are scraped under a name. It is
// killed when the test ends.
func (l *live) process(name string, args ...string) *process {
	l.Helper()
	if l.instances[name] == "" {
		l.instances[name] = ports.Free(l.T)
	}
	p, err := run(append(args, "--http", l.instances[name], "--quiet")...)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(p.kill)
	return p
}

// TestAlertsLive makes faults on nodes that run, and has a Prometheus see the
// alert of each: it is pending, then firing, no other alert fires than those
// that the fault must cause, and it is resolved once the fault is repaired as
// the alert's runbook says.
func TestAlertsLive(t *testing.T) {
	text, err := os.ReadFile(alertRules)
	if err != nil {
		t.Fatal(err)
	}
	rules := string(text)
	short := shorten(rules)
	checkShortened(t, rules, short)
	var names []string
	for _, m := range ruleNames.FindAllStringSubmatch(rules, -1) {
		names = append(names, m[1])
		if len(liveFaults[m[1]]) == 0 {
			t.Errorf("nobody makes a fault for %s: add one to liveFaults", m[1])
		}
	}
	for name := range liveFaults {
		if !slices.Contains(names, name) {
			t.Errorf("%s is not an alert of %s", name, alertRules)
		}
	}
	p := startPrometheus(t, short)
	var mu sync.Mutex
	var report []string
	t.Run("faults", func(t *testing.T) {
		for _, alert := range names {
			for _, what := range slices.Sorted(maps.Keys(liveFaults[alert])) {
				t.Run(alert+"/"+what, func(t *testing.T) {
					t.Parallel()
					job := "cantus-" + strings.Map(func(r rune) rune {
						if r == ' ' || r == '/' {
							return '-'
						}
						return r
					}, alert+" "+what)
					l := &live{T: t, prometheus: p, alert: alert, job: job, disks: map[string]disk{}, instances: map[string]string{}}
					liveFaults[alert][what](l)
					mu.Lock()
					report = append(report, fmt.Sprintf("%-24s %-48s %s", alert, what, l.took))
					mu.Unlock()
				})
			}
		}
		t.Run("none", func(t *testing.T) {
			t.Parallel()
			l := &live{T: t, prometheus: p, job: "cantus-none", disks: map[string]disk{}, instances: map[string]string{}}
			l.quiet()
		})
		t.Run("dashboard", func(t *testing.T) {
			t.Parallel()
			l := &live{T: t, prometheus: p, job: "cantus-all", disks: map[string]disk{}, instances: map[string]string{}}
			l.dashboard()
		})
	})
	slices.Sort(report)
	t.Logf("\n%s", strings.Join(report, "\n"))
}
