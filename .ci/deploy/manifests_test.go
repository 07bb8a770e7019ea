package deploy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

// objects are what the manifests have.
type objects struct {
	set      *appsv1.StatefulSet
	services map[string]*corev1.Service
	budget   *policyv1.PodDisruptionBudget
	policy   *networkingv1.NetworkPolicy
	monitor  *monitoringv1.PodMonitor
}

// decode decodes manifests into the types of Kubernetes. A field that there is
// not is an error.
func decode(t *testing.T, text string) objects {
	t.Helper()
	all := objects{services: map[string]*corev1.Service{}}
	into := func(document string, to any) {
		t.Helper()
		if err := yaml.UnmarshalStrict([]byte(document), to); err != nil {
			t.Fatalf("%v, in\n%s", err, document)
		}
	}
	for _, document := range strings.Split(text, "\n---\n") {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatalf("%v, in\n%s", err, document)
		}
		switch kind.APIVersion + " " + kind.Kind {
		case " ":
			if regexp.MustCompile(`(?m)^[^#]`).MatchString(document) {
				t.Fatalf("no object:\n%s", document)
			}
		case "apps/v1 StatefulSet":
			all.set = &appsv1.StatefulSet{}
			into(document, all.set)
		case "v1 Service":
			var s corev1.Service
			into(document, &s)
			all.services[s.Name] = &s
		case "policy/v1 PodDisruptionBudget":
			all.budget = &policyv1.PodDisruptionBudget{}
			into(document, all.budget)
		case "networking.k8s.io/v1 NetworkPolicy":
			all.policy = &networkingv1.NetworkPolicy{}
			into(document, all.policy)
		case "monitoring.coreos.com/v1 PodMonitor":
			all.monitor = &monitoringv1.PodMonitor{}
			into(document, all.monitor)
		default:
			t.Fatalf("no check knows %s %s", kind.APIVersion, kind.Kind)
		}
	}
	return all
}

func TestManifests(t *testing.T) {
	text, err := os.ReadFile(manifests)
	if err != nil {
		t.Fatal(err)
	}
	all := decode(t, string(text))
	if all.policy == nil || len(all.services) != 2 || all.monitor != nil {
		t.Fatalf("objects are missing, or too many: %+v", all)
	}
	checkObjects(t, all)
}

// checkObjects checks what the objects say of each other.
func checkObjects(t *testing.T, all objects) {
	t.Helper()
	labels := all.set.Spec.Template.Labels
	selectors := map[string]map[string]string{
		"the StatefulSet": all.set.Spec.Selector.MatchLabels, "the PodDisruptionBudget": all.budget.Spec.Selector.MatchLabels,
	}
	for name, s := range all.services {
		selectors["the Service "+name] = s.Spec.Selector
	}
	if all.policy != nil {
		selectors["the NetworkPolicy"] = all.policy.Spec.PodSelector.MatchLabels
		selectors["the NetworkPolicy's nodes"] = all.policy.Spec.Ingress[0].From[0].PodSelector.MatchLabels
	}
	if all.monitor != nil {
		selectors["the PodMonitor"] = all.monitor.Spec.Selector.MatchLabels
	}
	for what, selector := range selectors {
		if len(selector) == 0 {
			t.Errorf("%s selects everything", what)
		}
		for key, value := range selector {
			if labels[key] != value {
				t.Errorf("%s does not select the nodes: %s is %q there", what, key, labels[key])
			}
		}
	}
	if got := all.budget.Spec.MaxUnavailable; got == nil || got.IntVal != 1 {
		t.Errorf("maxUnavailable is %v: two of three nodes have to be there", got)
	}
	nodes := all.services[all.set.Spec.ServiceName]
	if nodes == nil || nodes.Spec.ClusterIP != "None" || !nodes.Spec.PublishNotReadyAddresses {
		t.Errorf("founders that are not ready do not find each other: %+v", nodes)
	}
	if all.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement {
		t.Error("the first founder would wait for ever: no other is started before it is ready")
	}
	checkPorts(t, all)
	checkSecurity(t, all.set.Spec.Template.Spec)
}

// checkPorts checks that each port that is named is one of the container.
func checkPorts(t *testing.T, all objects) {
	t.Helper()
	c := all.set.Spec.Template.Spec.Containers[0]
	var ports []string
	for _, p := range c.Ports {
		ports = append(ports, p.Name)
	}
	used := []string{c.StartupProbe.HTTPGet.Port.StrVal, c.LivenessProbe.HTTPGet.Port.StrVal, c.ReadinessProbe.HTTPGet.Port.StrVal}
	for _, s := range all.services {
		for _, p := range s.Spec.Ports {
			used = append(used, p.TargetPort.StrVal)
		}
	}
	if all.policy != nil {
		var open []string
		for _, rule := range all.policy.Spec.Ingress {
			for _, p := range rule.Ports {
				open = append(open, p.Port.StrVal)
			}
		}
		if slices.Sort(open); !slices.Equal(open, slices.Sorted(slices.Values(ports))) {
			t.Errorf("the NetworkPolicy has the ports %v, the container %v", open, ports)
		}
	}
	if all.monitor != nil {
		for _, e := range all.monitor.Spec.PodMetricsEndpoints {
			used = append(used, *e.Port)
		}
	}
	for _, name := range used {
		if !slices.Contains(ports, name) {
			t.Errorf("the container has no port %q", name)
		}
	}
}

// checkSecurity checks what keeps a node from doing more than it needs.
func checkSecurity(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	c := pod.Containers[0]
	s := c.SecurityContext
	switch {
	case !*pod.SecurityContext.RunAsNonRoot || *pod.SecurityContext.RunAsUser == 0:
		t.Error("it runs as root")
	case pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Error("it may make any system call")
	case !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}):
		t.Errorf("the container's securityContext: %+v", s)
	case *pod.AutomountServiceAccountToken:
		t.Error("it has a token of the cluster")
	case pod.Affinity.PodAntiAffinity == nil:
		t.Error("all nodes may be on one machine")
	case *pod.TerminationGracePeriodSeconds < 60:
		t.Error("a node has no time to stop")
	}
	mounts := map[string]string{"data": "", "secret": ""}
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	for _, a := range c.Args {
		name, value, _ := strings.Cut(a, "=")
		switch {
		case name == "--data" && !strings.HasPrefix(value, mounts["data"]+"/"):
			t.Errorf("%s is not on the volume", a)
		case (name == "--cluster-secret-file" || name == "--nats-config") && !strings.HasPrefix(value, mounts["secret"]+"/"):
			t.Errorf("%s is not in the Secret", a)
		case name == "--cluster-secret" || name == "--insecure":
			t.Errorf("the nodes have %s", name)
		}
	}
}
