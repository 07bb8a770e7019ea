package deploy

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	registry "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/kubernetes"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	yamlv2 "go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// scrapeConfig is a job of Prometheus that finds what it scrapes in Kubernetes.
type scrapeConfig struct {
	JobName        string                 `yaml:"job_name"`
	Discovery      []*kubernetes.SDConfig `yaml:"kubernetes_sd_configs"`
	RelabelConfigs []*relabel.Config      `yaml:"relabel_configs"`
}

// jobs matches the jobs that the alerts and the dashboard know.
var jobs = regexp.MustCompile(`^cantus(-.+)?$`)

// scrape reads the configuration for Kubernetes. .ci/alerts has promtool read
// the other one.
func scrape(t *testing.T) scrapeConfig {
	t.Helper()
	text, err := os.ReadFile("../../deploy/prometheus/kubernetes.yml")
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		RuleFiles []string       `yaml:"rule_files"`
		Scrape    []scrapeConfig `yaml:"scrape_configs"`
	}
	if err := yamlv2.UnmarshalStrict(text, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.RuleFiles) != 1 || c.RuleFiles[0] != "alerts.yml" || len(c.Scrape) != 1 || len(c.Scrape[0].Discovery) != 1 || !jobs.MatchString(c.Scrape[0].JobName) {
		t.Fatalf("%+v", c)
	}
	for _, r := range c.Scrape[0].RelabelConfigs {
		r.NameValidationScheme = model.UTF8Validation // as Prometheus has it
	}
	return c.Scrape[0]
}

// Prometheus finds the nodes of the manifests, each once and by its name, and
// no other pod.
func TestPrometheusInKubernetes(t *testing.T) {
	text, err := os.ReadFile(manifests)
	if err != nil {
		t.Fatal(err)
	}
	template := decode(t, string(text)).set.Spec.Template
	var pods corev1.PodList
	for i, name := range []string{"cantus-0", "cantus-1", "cantus-2", "other-0"} {
		pod := corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Name, pod.Namespace, pod.Labels = name, "cantus", maps.Clone(pod.Labels)
		if name == "other-0" {
			pod.Labels["app.kubernetes.io/instance"] = "other"
		}
		pod.Status.PodIP = fmt.Sprintf("10.0.0.%d", i+1)
		pods.Items = append(pods.Items, pod)
	}
	job := scrape(t)
	got := map[string]string{}
	for _, group := range discover(t, job.Discovery[0], pods) {
		for _, target := range group.Targets {
			b := labels.NewBuilder(labels.EmptyLabels())
			for name, value := range group.Labels.Merge(target) {
				b.Set(string(name), string(value))
			}
			if relabel.ProcessBuilder(b, job.RelabelConfigs...) {
				got[b.Get("instance")] = b.Get("__address__")
			}
		}
	}
	want := map[string]string{"cantus-0": "10.0.0.1:8222", "cantus-1": "10.0.0.2:8222", "cantus-2": "10.0.0.3:8222"}
	if !maps.Equal(got, want) {
		t.Errorf("it scrapes %v, want %v", got, want)
	}
}

// discover returns what a service discovery finds in a cluster with some pods.
func discover(t *testing.T, sd *kubernetes.SDConfig, pods corev1.PodList) []*targetgroup.Group {
	t.Helper()
	api := httptest.NewServer(podsAPI(pods))
	t.Cleanup(api.Close)
	t.Cleanup(api.CloseClientConnections)
	var err error
	if sd.APIServer.URL, err = url.Parse(api.URL); err != nil {
		t.Fatal(err)
	}
	r := registry.NewRegistry()
	d, err := sd.NewDiscoverer(discovery.DiscovererOptions{
		Logger: slog.New(slog.DiscardHandler), Metrics: sd.NewDiscovererMetrics(r, discovery.NewRefreshMetrics(r)),
	})
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan []*targetgroup.Group)
	go d.Run(t.Context(), found)
	var all []*targetgroup.Group
	for len(all) < len(pods.Items) {
		select {
		case groups := <-found:
			all = append(all, groups...)
		case <-time.After(time.Minute):
			t.Fatalf("it has found %d of %d pods", len(all), len(pods.Items))
		}
	}
	return all
}

// podsAPI is what Kubernetes answers to a watch of pods that begins with those
// that there are. Nothing changes then.
func podsAPI(pods corev1.PodList) http.HandlerFunc {
	type event struct {
		Type   string     `json:"type"`
		Object corev1.Pod `json:"object"`
	}
	return func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); r.URL.Path != "/api/v1/namespaces/cantus/pods" || q.Get("sendInitialEvents") != "true" {
			http.Error(w, "not served: "+r.URL.String(), http.StatusNotImplemented)
			return
		}
		end := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}
		end.ResourceVersion = "1"
		w.Header().Set("Content-Type", "application/json")
		to := json.NewEncoder(w)
		for _, p := range append(slices.Clone(pods.Items), end) {
			e := event{"ADDED", p}
			if p.Name == "" {
				e.Type = "BOOKMARK"
			}
			e.Object.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
			_ = to.Encode(e)
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// The PodMonitor selects the nodes and their port, under a job that the alerts
// know, whatever the release is called.
func TestPodMonitor(t *testing.T) {
	for release, job := range map[string]string{"cantus": "cantus", "cantus-orders": "cantus-orders", "orders": "cantus-orders", "cantusx": "cantus-cantusx"} {
		text, err := renderAs(t, release, "", map[string]any{"podMonitor": map[string]any{"enabled": true, "labels": map[string]any{"release": "prometheus"}}})
		if err != nil {
			t.Fatal(err)
		}
		all := decode(t, text)
		if all.monitor == nil {
			t.Fatal("there is no PodMonitor")
		}
		checkObjects(t, all)
		if got := all.monitor.Labels["release"]; got != "prometheus" {
			t.Errorf("its labels are %v", all.monitor.Labels)
		}
		have := map[string]monitoringv1.RelabelConfig{}
		for _, r := range all.monitor.Spec.PodMetricsEndpoints[0].RelabelConfigs {
			have[r.TargetLabel] = r
		}
		if r := have["job"].Replacement; r == nil || *r != job || !jobs.MatchString(job) {
			t.Errorf("the job of %s: %+v", release, have["job"])
		}
		if r := have["instance"].SourceLabels; !slices.Equal(r, []monitoringv1.LabelName{"__meta_kubernetes_pod_name"}) {
			t.Errorf("the instance: %+v", have["instance"])
		}
	}
}

// The alerts are what a PrometheusRule of the operator has.
func TestAlertsAreARule(t *testing.T) {
	text, err := os.ReadFile("../../deploy/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var spec monitoringv1.PrometheusRuleSpec
	if err := yaml.UnmarshalStrict(text, &spec); err != nil || len(spec.Groups) == 0 {
		t.Errorf("%d groups: %v", len(spec.Groups), err)
	}
}
