package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/otlptest"
	"github.com/cantuslog/cantus/internal/testkit"
)

// TestTracesOfACluster appends a transaction with a trace context to three
// nodes that send their spans to a collector. The leader's span and those of
// both followers arrive below the writer's. When the collector is gone, appends
// go on.
func TestTracesOfACluster(t *testing.T) {
	collector := otlptest.Start(t)
	c := startCluster(t, 3, "--partitions", "1", "--traces", collector.URL)
	client := c.dial("n1")
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	m := nats.NewMsg("cantus.append.0")
	m.Header.Set("traceparent", "00-"+trace+"-"+parent+"-01")
	m.Header.Set("Nats-Msg-Id", "traced")
	if _, err := c.keep(testkit.Soon(t), client, m); err != nil {
		t.Fatal(err)
	}
	if err := c.until(t.Context(), "the spans of three nodes", func(context.Context) string {
		var names, nodes []string
		for _, s := range collector.Spans() {
			if s.Trace != trace || s.Parent != parent || s.Program != "cantus" || s.Service != s.Attributes["cantus.node"] {
				t.Fatalf("span %+v", s)
			}
			if s.Attributes["cantus.duplicate"] != "true" { // sent again
				names, nodes = append(names, s.Name), append(nodes, s.Service)
			}
		}
		slices.Sort(names)
		slices.Sort(nodes)
		if got := fmt.Sprint(names, nodes); got != "[append cantus apply cantus apply cantus] [n1 n2 n3]" {
			return got
		}
		return ""
	}); err != nil {
		t.Fatal(err)
	}
	collector.CloseClientConnections()
	collector.Close()
	for i := range 20 {
		m.Header.Set("Nats-Msg-Id", fmt.Sprint("unheard", i))
		if _, err := c.keep(testkit.Soon(t), client, m); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, "a node says that spans are lost", func() bool {
		return slices.ContainsFunc(c.nodes, func(n *node) bool { return strings.Contains(n.running().stderr.String(), "spans are lost") })
	})
}
