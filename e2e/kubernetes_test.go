//go:build unix

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
)

const manifests = "../deploy/kubernetes/cantus.yaml"

// manifest is an object of Kubernetes, as far as its processes show in it.
type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Replicas int
		Template struct {
			Spec struct{ Containers []container }
		}
	}
}

type container struct {
	Args []string
	Env  []struct {
		Name, Value string
		ValueFrom   struct {
			FieldRef struct {
				FieldPath string `yaml:"fieldPath"`
			} `yaml:"fieldRef"`
		} `yaml:"valueFrom"`
	}
	StartupProbe   httpProbe `yaml:"startupProbe"`
	LivenessProbe  httpProbe `yaml:"livenessProbe"`
	ReadinessProbe httpProbe `yaml:"readinessProbe"`
}

type httpProbe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// statefulSet reads the StatefulSet of the manifests.
func statefulSet(t *testing.T) (m manifest, c container) {
	t.Helper()
	text, err := os.ReadFile(manifests)
	if err != nil {
		t.Fatal(err)
	}
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var m manifest
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			t.Fatalf("%s has no StatefulSet", manifests)
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.Kind == "StatefulSet" {
			return m, m.Spec.Template.Spec.Containers[0]
		}
	}
}

// pods are the processes of the StatefulSet on this machine.
type pods struct {
	t         *testing.T
	set       manifest
	container container
	dir       string
	here      *strings.Replacer // addresses and files
	nodes     []*node           // and one more than there are at first
	founded   bool              // the operator has removed --bootstrap
}

// newPods maps the names, ports and files of the pods to loopback and a
// directory. Nothing else of a command line changes.
func newPods(t *testing.T) *pods {
	t.Helper()
	p := &pods{t: t, dir: t.TempDir()}
	p.set, p.container = statefulSet(t)
	token, users := filepath.Join(p.dir, "token"), filepath.Join(p.dir, "nats.conf")
	if err := os.WriteFile(token, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	writeExampleUsers(t, users)
	pairs := []string{"/etc/cantus/token", token, "/etc/cantus/nats.conf", users}
	for i := range p.set.Spec.Replicas + 1 {
		host := fmt.Sprintf("%s.%s-nodes:", p.name(i), p.set.Metadata.Name)
		pairs = append(pairs, host+"6222", ports.Free(t), host+"7222", ports.Free(t))
	}
	p.here = strings.NewReplacer(pairs...)
	for i := range p.set.Spec.Replicas + 1 {
		p.nodes = append(p.nodes, newNode(t, p.name(i), ""))
	}
	return p
}

func (p *pods) name(ordinal int) string { return fmt.Sprintf("%s-%d", p.set.Metadata.Name, ordinal) }

// command returns a pod's arguments and variables, as the kubelet expands them.
func (p *pods) command(ordinal int) (args, env []string) {
	var variables []string
	for _, e := range p.container.Env {
		value := e.Value
		switch e.ValueFrom.FieldRef.FieldPath {
		case "":
		case "metadata.name":
			value = p.name(ordinal)
		default:
			p.t.Fatalf("%s is %s: this test does not know it", e.Name, e.ValueFrom.FieldRef.FieldPath)
		}
		variables = append(variables, "$("+e.Name+")", value)
		env = append(env, e.Name+"="+value)
	}
	for _, a := range p.container.Args {
		a = strings.NewReplacer(variables...).Replace(a)
		if strings.Contains(a, "$(") {
			p.t.Fatalf("%s has a variable that the container does not have", a)
		}
		if p.founded && strings.HasPrefix(a, "--bootstrap=") {
			continue
		}
		args = append(args, a)
	}
	return args, env
}

// volume is where a pod keeps its data.
func (p *pods) volume(ordinal int) string { return filepath.Join(p.dir, p.name(ordinal)) }

// start runs a pod's command line. It does not wait until the node serves.
func (p *pods) start(ordinal int) {
	p.t.Helper()
	args, env := p.command(ordinal)
	own := fmt.Sprintf("%s.%s-nodes:", p.name(ordinal), p.set.Metadata.Name)
	for i, a := range args {
		switch a {
		case "--listen=:4222":
			a = "--listen=127.0.0.1:0"
		case "--http=:8222":
			a = "--http=127.0.0.1:0"
		case "--cluster=:6222":
			a = "--cluster=" + own + "6222"
		case "--raft=:7222":
			a = "--raft=" + own + "7222"
		case "--data=/var/lib/cantus/data":
			a = "--data=" + filepath.Join(p.volume(ordinal), "data")
		}
		args[i] = p.here.Replace(a)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	process, err := runCommand(cmd)
	if err != nil {
		p.t.Fatal(err)
	}
	n := p.nodes[ordinal]
	n.mu.Lock()
	n.process = process
	n.mu.Unlock()
}

// probe asks what the kubelet asks.
func (p *pods) probe(n *node) error {
	c := p.container
	for _, probe := range []httpProbe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		if probe.HTTPGet.Port != "http" {
			return fmt.Errorf("the probe %+v is not of the port http", probe)
		}
		r, err := http.Get(n.http + probe.HTTPGet.Path)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return err
		}
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", probe.HTTPGet.Path, body)
		}
	}
	return nil
}

// The command lines of the StatefulSet found one cluster, in whatever order the
// pods start, and a pod that is replaced comes back into it.
func TestKubernetesFoundsACluster(t *testing.T) {
	orders := testkit.Sized([][]int{{2, 0, 1}}, [][]int{{2, 0, 1}}, [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}})
	for _, order := range orders {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			testkit.Parallel(t)
			p := newPods(t)
			if p.set.Spec.Replicas != len(order) {
				t.Fatalf("the manifests have %d nodes", p.set.Spec.Replicas)
			}
			for i, ordinal := range order {
				if i > 0 { // the one before waits for this one, and for nothing else
					before := p.nodes[order[i-1]]
					testkit.Until(t, before.name+" waits for the others", func() bool {
						return before.running().stderr.has(`"for":"founders`) || before.running().ended()
					})
				}
				p.start(ordinal)
			}
			p.await(p.nodes[:3]...)
			p.append("hello")

			last := p.nodes[order[2]]
			if err := last.stop(); err != nil {
				t.Fatal(err)
			}
			p.append("again")
			p.start(order[2])
			p.await(last)
		})
	}
}

// await waits until nodes serve, and until the kubelet finds them ready.
func (p *pods) await(nodes ...*node) {
	p.t.Helper()
	for _, n := range nodes {
		if err := n.awaitReady(); err != nil {
			p.t.Fatal(err)
		}
	}
	for _, n := range nodes {
		var err error
		testkit.Until(p.t, n.name+" is ready", func() bool {
			err = p.probe(n)
			return err == nil
		})
	}
}

// run runs a command as a user of the example.
func (p *pods) run(user string, args ...string) {
	p.t.Helper()
	var servers []string
	for _, n := range p.nodes {
		if n.url != "" {
			servers = append(servers, n.url)
		}
	}
	args = append(append(args, "--server", strings.Join(servers, ",")), as(user)...)
	if code, _, stderr := cantus(p.t, args...); code != 0 {
		p.t.Fatalf("cantus %q: status %d, %s", args, code, stderr)
	}
}

func (p *pods) append(payload string) {
	p.t.Helper()
	file := filepath.Join(p.dir, "payload")
	if err := os.WriteFile(file, []byte(payload), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.run("app", "append", "0", file)
}

// A pod that loses its volume, and one that comes later, are added as
// docs/install.md says, once the operator has removed --bootstrap.
func TestKubernetesAddsNodes(t *testing.T) {
	testkit.NotShort(t, "it founds a cluster")
	testkit.Parallel(t)
	p := newPods(t)
	for i := range 3 {
		p.start(i)
	}
	p.await(p.nodes[:3]...)
	p.append("hello")
	p.founded = true

	p.nodes[1].kill()
	if err := os.RemoveAll(p.volume(1)); err != nil {
		t.Fatal(err)
	}
	p.run("ops", "cluster", "remove", "cantus-1", "--wait", "10m")
	p.startNew(1)
	p.run("ops", "cluster", "add", "cantus-1", "--wait", "10m")
	p.await(p.nodes[1])

	p.startNew(3)
	p.run("ops", "cluster", "add", "cantus-3", "--wait", "10m")
	p.await(p.nodes[3])
	p.run("ops", "cluster", "balance", "--wait", "10m")
	p.append("again")
}

// startNew starts a pod with an empty volume, again if it ends, as the kubelet
// does, until it waits to be added: a node that has not heard yet that the old
// one was removed refuses it.
func (p *pods) startNew(ordinal int) {
	p.t.Helper()
	p.start(ordinal)
	testkit.Until(p.t, p.name(ordinal)+" waits to be added", func() bool {
		process := p.nodes[ordinal].running()
		if process.stderr.has("cantus cluster add") {
			return true
		}
		if process.ended() {
			p.start(ordinal)
		}
		return false
	})
}

// The command lines have no mistake, with all addresses as they are.
func TestKubernetesCommandLines(t *testing.T) {
	p := newPods(t)
	for i := range p.set.Spec.Replicas {
		args, env := p.command(i)
		if args[0] != "serve" {
			t.Fatalf("%s does not serve: %q", p.name(i), args)
		}
		line := []string{"config", "check"}
		for _, a := range args[1:] {
			switch name, _, _ := strings.Cut(a, "="); name {
			case "--cluster-secret-file", "--nats-config":
				a = p.here.Replace(a)
			case "--data":
				a = "--data=" + t.TempDir()
			}
			line = append(line, a)
		}
		cmd := exec.Command(program, line...)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", p.name(i), err, out)
		}
	}
}
