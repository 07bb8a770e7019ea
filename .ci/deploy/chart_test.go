package deploy

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

const (
	chartDir  = "../../deploy/helm/cantus"
	manifests = "../../deploy/kubernetes/cantus.yaml"
)

var update = flag.Bool("update", false, "write the manifests")

// heading is the beginning of the manifests.
const heading = `# Three nodes of Cantus in the namespace cantus. docs/install.md says what they
# need beforehand. "make kubernetes" writes this file: it is what the Helm chart
# in deploy/helm gives with its default values.
`

// render returns the manifests that the chart gives.
func render(t *testing.T, values map[string]any) (string, error) {
	t.Helper()
	return renderAs(t, "cantus", "", values)
}

// renderAs is render for a release with another name, or for a version that the
// chart was packed with.
func renderAs(t *testing.T, release, version string, values map[string]any) (string, error) {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	if version != "" {
		c.Metadata.Version, c.Metadata.AppVersion = version, version
	}
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: release, Namespace: "cantus", IsInstall: true}, nil)
	if err != nil {
		return "", err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return "", err
	}
	var names []string
	for name, text := range files {
		if filepath.Ext(name) == ".yaml" && strings.TrimSpace(text) != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	text := heading
	for _, name := range names {
		text += "---\n" + strings.TrimSpace(files[name]) + "\n"
	}
	return text, nil
}

// The plain manifests are those of the chart with its default values.
func TestManifestsAreTheCharts(t *testing.T) {
	want, err := render(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(manifests, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(manifests)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is stale: run \"make kubernetes\"; want\n%s", manifests, want)
	}
}

// With other values the manifests are valid too.
func TestValues(t *testing.T) {
	text, err := render(t, map[string]any{
		"image":             map[string]any{"repository": "registry.example/cantus", "tag": "1.2.3"},
		"imagePullSecrets":  []any{map[string]any{"name": "pull"}},
		"replicas":          5,
		"founders":          0,
		"secretName":        "other",
		"storage":           map[string]any{"className": "local", "size": "1Ti"},
		"extraArgs":         []any{"--archive=s3://bucket"},
		"extraEnv":          []any{map[string]any{"name": "AWS_REGION", "value": "eu-central-1"}},
		"antiAffinity":      "preferred",
		"nodeSelector":      map[string]any{"disk": "nvme"},
		"tolerations":       []any{map[string]any{"key": "log", "operator": "Exists"}},
		"podAnnotations":    map[string]any{"a": "b"},
		"priorityClassName": "high",
		"networkPolicy":     map[string]any{"clients": map[string]any{"cantus": "client"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, text)
	checkObjects(t, all)
	pod := all.set.Spec.Template.Spec
	args := pod.Containers[0].Args
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--bootstrap") }) {
		t.Errorf("nobody founds the cluster, and the nodes are told to: %q", args)
	}
	if !slices.Contains(args, "--archive=s3://bucket") || !strings.Contains(strings.Join(args, " "), "cantus-4.cantus-nodes:6222") {
		t.Errorf("arguments: %q", args)
	}
	if got := pod.Volumes[0].Secret.SecretName; got != "other" {
		t.Errorf("the Secret is %s", got)
	}
	if pod.Containers[0].Image != "registry.example/cantus:1.2.3" {
		t.Errorf("the image is %s", pod.Containers[0].Image)
	}
	if text, err = render(t, map[string]any{"networkPolicy": map[string]any{"enabled": false}}); err != nil {
		t.Fatal(err)
	}
	if all := decode(t, text); all.policy != nil {
		t.Error("there is a NetworkPolicy")
	}
}

// The image of a snapshot has a tag that an image may have.
func TestSnapshotsTag(t *testing.T) {
	text, err := renderAs(t, "cantus", "0.1.0-dev+abc", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := decode(t, text).set.Spec.Template.Spec.Containers[0].Image; got != "cantus:0.1.0-dev-abc" {
		t.Errorf("the image is %s", got)
	}
}

// Values that would not give a cluster are refused, with what is wrong.
func TestValuesThatAreRefused(t *testing.T) {
	for want, values := range map[string]map[string]any{
		"set founders to 0 once it is founded": {"replicas": 4},
		"antiAffinity is required":             {"antiAffinity": "none"},
	} {
		if _, err := render(t, values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", values, err, want)
		}
	}
}
