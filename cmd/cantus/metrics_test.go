package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/internal/testcert"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// TestMetrics checks what a node, an archiver and a mirror show: that it is as
// Prometheus wants it, that docs/metrics.md lists it, and that the alerts and
// the dashboard use nothing else.
func TestMetrics(t *testing.T) {
	texts := map[string][]byte{"node": nodeMetrics(t), "archiver": archiverMetrics(t), "mirror": mirrorMetricsText(t)}
	shown := map[string]exposed{}
	for process, text := range texts {
		problems, err := promlint.New(bytes.NewReader(text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems { // as promtool check metrics says it
			if strings.HasPrefix(p.Metric, "cantus_") {
				t.Errorf("%s: %s: %s", process, p.Metric, p.Text)
			}
		}
		maps.Copy(shown, exposedIn(t, text))
	}
	t.Run("page", func(t *testing.T) { checkMetricsPage(t, shown) })
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, shown) })
	t.Run("dashboard", func(t *testing.T) { checkDashboard(t, shown) })
}

// An archiver and a mirror wait for no client for ever.
func TestMetricsForSlowClients(t *testing.T) {
	testkit.SlowHTTPClients(t, newMetricsServer)
}

// exposed is what an exposition says of a metric.
type exposed struct {
	kind   string
	labels string // names in alphabetical order, separated by commas
}

var (
	typeLine   = regexp.MustCompile(`(?m)^# TYPE (cantus_\w+) (\w+)$`)
	sampleLine = regexp.MustCompile(`(?m)^(cantus_\w+?)(?:\{(.*)\})? \S+$`)
	labelName  = regexp.MustCompile(`(\w+)="(?:[^"\\]|\\.)*"`)
)

// exposedIn returns our metrics in an exposition.
func exposedIn(t *testing.T, text []byte) map[string]exposed {
	t.Helper()
	all := map[string]exposed{}
	for _, m := range typeLine.FindAllSubmatch(text, -1) {
		all[string(m[1])] = exposed{kind: string(m[2])}
	}
	for _, m := range sampleLine.FindAllSubmatch(text, -1) {
		name := metricOf(string(m[1]), all)
		var labels []string
		for _, l := range labelName.FindAllSubmatch(m[2], -1) {
			if string(l[1]) != "le" {
				labels = append(labels, string(l[1]))
			}
		}
		slices.Sort(labels)
		e, known := all[name]
		if !known {
			t.Errorf("%s has no type", name)
		}
		if e.labels = strings.Join(labels, ", "); len(labels) > 0 || all[name].labels == "" {
			all[name] = e
		}
	}
	return all
}

// metricOf returns the metric that a series belongs to: a histogram has three.
func metricOf(series string, all map[string]exposed) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, is := strings.CutSuffix(series, suffix); is && all[base].kind == "histogram" {
			return base
		}
	}
	return series
}

// wholeArchive has everything, and nothing was trimmed.
type wholeArchive struct{}

var errNothing = errors.New("nothing was trimmed")

func (wholeArchive) Batches(context.Context, int, uint64, wal.Base) ([]wal.Batch, error) {
	return nil, errNothing
}

func (wholeArchive) Find(context.Context, int, int64, uint64, wal.Base) (uint64, error) {
	return 0, errNothing
}
func (wholeArchive) Check(context.Context, int, wal.Base, []string) (uint64, error) { return 0, nil }

// nodeMetrics returns the metrics of a node that has all that a node can have.
func nodeMetrics(t *testing.T) (text []byte) {
	t.Helper()
	cert, key := testcert.NewAuthority(t).Files("n1", time.Now().Add(time.Hour))
	config := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "tls { cert_file: %q, key_file: %q }", cert, key), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := broker.Open(testkit.Soon(t), t.TempDir(), broker.Options{
		Partitions: 2, ClientListen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", NATSConfig: config, Archive: wholeArchive{},
		RetentionInterval: 100 * time.Millisecond, Version: "1.2.3",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, r := range []struct {
		subject, body string
		header        nats.Header
		want          string
	}{
		{"cantus.append.0", "x", nats.Header{"Cantus-Write-Lock": {"a"}, "Cantus-High-Water-Mark": {"0"}}, `"txid":1`},
		{"cantus.append.0", "x", nats.Header{"Cantus-Write-Lock": {"a"}, "Cantus-High-Water-Mark": {"0"}}, `"conflict"`},
		{"cantus.cursor.0.billing", `{"txid":1}`, nil, `"txid":1`},
		{"cantus.admin.cluster.retention", `{"policy":{"age":"720h","cursors":["billing"]}}`, nil, `facts`},
		{"cantus.admin.cluster.namespace", `{"name":"orders","partitions":[1],"limits":{"kept":1}}`, nil, `facts`},
	} {
		m, err := nc.RequestMsgWithContext(testkit.Soon(t), &nats.Msg{Subject: r.subject, Data: []byte(r.body), Header: r.header})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(m.Data), r.want) {
			t.Fatalf("%s: %s", r.subject, m.Data)
		}
	}
	testkit.Until(t, "all metrics", func() bool {
		_ = nc.Publish("cantus.ns.orders.append.0", nil) // the second is one too many
		text = scrape(t, "http://"+n.HTTPAddr()+"/metrics")
		if !bytes.Contains(text, []byte("\ncantus_limit_refusals_total{")) {
			return false
		}
		return bytes.Contains(text, []byte("\ncantus_retention_cursor_lag_seconds{")) && bytes.Contains(text, []byte("\ncantus_archive_usable{"))
	})
	for _, line := range []string{
		`cantus_conflicts_total{mode="write",partition="0"} 1`, `cantus_leaderships_total{partition="0"} 1`, `cantus_first_txid{partition="0"} 1`,
		`cantus_leader_known{partition="facts"} 1`, `cantus_voters{partition="0"} 1`, `cantus_voters_away{partition="0"} 0`,
		`cantus_cursor_lag_transactions{cursor="billing",partition="0"} 0`, `cantus_lock_table_locks{partition="0"} 1`,
		`cantus_namespace_limit{limit="kept",namespace="orders",partition="1"} 1`,
		`cantus_replica_open{partition="0"} 1`, `cantus_build_info{go_version="`, `,version="1.2.3"} 1`, `cantus_certificate_expiry_timestamp_seconds{port="client"} 1`,
	} {
		if !bytes.Contains(text, []byte(line)) {
			t.Errorf("the node's metrics lack %s", line)
		}
	}
	return text
}

func scrape(t *testing.T, url string) []byte {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v: %s", r.StatusCode, err, text)
	}
	return text
}

// archiverMetrics returns the metrics of an archiver, all of which are set.
func archiverMetrics(t *testing.T) []byte {
	t.Helper()
	m := newBackupMetrics()
	m.progress(backup.Progress{Partition: 0, Txid: 1, Last: 2})
	m.ran(nil)
	return exposition(t, m.registry)
}

func mirrorMetricsText(t *testing.T) []byte {
	t.Helper()
	return exposition(t, newMirrorMetrics([]int{0}).registry)
}

func exposition(t *testing.T, registry *prometheus.Registry) []byte {
	t.Helper()
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return answer.Body.Bytes()
}

// checkMetricsPage checks that docs/metrics.md has a row for each metric, with
// its type and its labels, and no other rows.
func checkMetricsPage(t *testing.T, shown map[string]exposed) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]exposed{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(cantus_\\w+)` \\| (\\w+) \\| ([^|]*) \\| [^|]+ \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(string(page), -1) {
		if _, twice := listed[row[1]]; twice {
			t.Errorf("docs/metrics.md lists %s twice", row[1])
		}
		labels := strings.Split(strings.ReplaceAll(strings.Trim(row[3], " -"), "`", ""), ", ")
		slices.Sort(labels)
		listed[row[1]] = exposed{row[2], strings.Join(labels, ", ")}
	}
	if rows := strings.Count(string(page), "\n| `cantus_"); rows != len(listed) {
		t.Errorf("docs/metrics.md has %d rows, and %d of them are name, type, labels, unit, meaning and what to do", rows, len(listed))
	}
	rules, err := os.ReadFile("../../deploy/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range regexp.MustCompile(`operations\.md#(cantus\w+)`).FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(string(rules), "docs/operations.md#"+to[1]+"\n") {
			t.Errorf("docs/metrics.md names the alert %s, which there is not", to[1])
		}
	}
	for name, e := range shown {
		if l, is := listed[name]; !is {
			t.Errorf("docs/metrics.md does not list %s (%s; %s)", name, e.kind, e.labels)
		} else if l != e {
			t.Errorf("docs/metrics.md says of %s %q, it is %q", name, l, e)
		}
	}
	for name := range listed {
		if _, is := shown[name]; !is {
			t.Errorf("docs/metrics.md lists %s, which nothing shows", name)
		}
	}
}

// runbooks is the page to which the alerts' runbooks point.
const runbooks = "https://github.com/cantuslog/cantus/blob/main/docs/operations.md#"

// checkAlerts checks the alerts' metrics and runbooks.
func checkAlerts(t *testing.T, shown map[string]exposed) {
	text, err := os.ReadFile("../../deploy/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("../../deploy/prometheus/alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	faults, err := os.ReadFile("../../e2e/alertsfaults_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, sections, _ := strings.Cut(string(page), "\n## Alerts\n")
	headings := regexp.MustCompile(`(?m)^### (Cantus\w+)$`).FindAllStringSubmatch(sections, -1)
	var alerts []string
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			alerts = append(alerts, r.Alert)
			checkQuery(t, r.Alert, r.Expr, shown)
			if want := runbooks + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
				t.Errorf("%s: its runbook is %q, not %q", r.Alert, r.Annotations["runbook"], want)
			}
			if r.Annotations["summary"] == "" || r.Labels["severity"] != "page" && r.Labels["severity"] != "ticket" {
				t.Errorf("%s has no summary, or a severity that is neither page nor ticket", r.Alert)
			}
			if !strings.Contains(string(tests), "alertname: "+r.Alert+"\n") {
				t.Errorf("%s is not in deploy/prometheus/alerts_test.yml", r.Alert)
			}
			if !regexp.MustCompile(`\n\t"` + r.Alert + `": +\{`).Match(faults) {
				t.Errorf("no fault of liveFaults in e2e/alertsfaults_test.go makes %s fire: add one, and run make alerts-live", r.Alert)
			}
		}
	}
	var described []string
	for _, h := range headings {
		described = append(described, h[1])
	}
	if !slices.Equal(alerts, described) || len(alerts) < 10 {
		t.Errorf("the alerts are\n%q\ndocs/operations.md describes\n%q", alerts, described)
	}
}

// checkDashboard checks the metrics in the dashboard's queries, and its rows.
func checkDashboard(t *testing.T, shown map[string]exposed) {
	text, err := os.ReadFile("../../deploy/grafana/cantus.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
		Templating struct{ List []struct{ Query any } }
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, p := range d.Panels {
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		for _, target := range p.Targets {
			checkQuery(t, "panel "+p.Title, target.Expr, shown)
		}
	}
	for _, v := range d.Templating.List {
		if q, is := v.Query.(string); is && q != "prometheus" {
			checkQuery(t, "variable", q, shown)
		}
	}
	if want := []string{"Cluster", "Partitions", "Latency", "Disk", "Reads and cursors"}; !slices.Equal(rows, want) {
		t.Errorf("the rows are %q, not %q", rows, want)
	}
}

var (
	seriesName = regexp.MustCompile(`\bcantus_\w+`)
	byLabels   = regexp.MustCompile(`\b(?:by|on|group_left)\s*\(([^)]*)\)`)
	matchers   = regexp.MustCompile(`\b(cantus_\w+)\{([^}]*)\}`)
)

// checkQuery checks that a query's metrics are shown, with the labels that it
// selects them by.
func checkQuery(t *testing.T, where, query string, shown map[string]exposed) {
	t.Helper()
	names := seriesName.FindAllString(query, -1)
	if len(names) == 0 && !strings.Contains(query, "up{") {
		t.Errorf("%s: %q uses none of our metrics", where, query)
	}
	labels := []string{"job", "instance", "le"} // Prometheus adds these
	for _, series := range names {
		e, is := shown[metricOf(series, shown)]
		if !is {
			t.Errorf("%s uses %s, which nothing shows", where, series)
		}
		labels = append(labels, strings.Split(e.labels, ", ")...)
	}
	for _, by := range byLabels.FindAllStringSubmatch(query, -1) {
		for l := range strings.SplitSeq(by[1], ",") {
			if l = strings.TrimSpace(l); l != "" && !slices.Contains(labels, l) {
				t.Errorf("%s groups by %q, which none of its metrics has: %s", where, l, query)
			}
		}
	}
	for _, m := range matchers.FindAllStringSubmatch(query, -1) {
		own := append(strings.Split(shown[metricOf(m[1], shown)].labels, ", "), "job", "instance")
		for _, l := range regexp.MustCompile(`(\w+)\s*[!=]~?"`).FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(own, l[1]) {
				t.Errorf("%s selects %s by %q, which it has not: %s", where, m[1], l[1], query)
			}
		}
	}
}
