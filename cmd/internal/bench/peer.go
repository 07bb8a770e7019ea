package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// maxAtomicBatch is how many messages an atomic batch of JetStream may have.
const maxAtomicBatch = 1000

// peerReplicas returns how many replicas a peer's stream has: 3, or the number
// of nodes if that is less, as in Cantus by default.
func peerReplicas(nodes int) int { return min(nodes, 3) }

// startJetstream starts the peer's servers: as many as Cantus has.
func (s *benchRun) startJetstream(ctx context.Context, sync string) (*cluster, error) {
	dir, err := s.tempDir("jetstream-" + sync)
	if err != nil {
		return nil, err
	}
	nodes := s.workload.Nodes
	addrs, err := freeAddrs(2 * nodes)
	if err != nil {
		return nil, err
	}
	listen, routes := addrs[:nodes], addrs[nodes:]
	var args [][]string
	for i := range nodes {
		name := nodeName(i)
		file := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(file, []byte(peerConfig(name, routes, i)), 0o600); err != nil {
			return nil, fmt.Errorf("configuration of %s: %w", name, err)
		}
		a := []string{"bench", "--serve-jetstream", filepath.Join(dir, name), "--serve-config", file, "--serve-listen", listen[i]}
		if sync == "always" {
			a = append(a, "--sync-always")
		}
		args = append(args, a)
	}
	name := fmt.Sprintf("jetstream R%d %s", peerReplicas(nodes), sync)
	return s.startCluster(ctx, name, dir, args)
}

// peerConfig returns a nats-server configuration: the defaults, except that it
// allows as many open atomic batches as the load needs.
func peerConfig(name string, routes []string, i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "server_name: %s\n", name)
	b.WriteString("jetstream { limits { batch { max_inflight_per_stream: 100000, max_inflight_total: 1000000 } } }\n")
	if len(routes) > 1 {
		fmt.Fprintf(&b, "cluster {\n  name: peer\n  listen: %q\n  routes: [\n", routes[i])
		for _, r := range others(routes, i) {
			fmt.Fprintf(&b, "    \"nats://%s\"\n", r)
		}
		b.WriteString("  ]\n}\n")
	}
	return b.String()
}

// peerSettings describes the peer's settings for the report.
func peerSettings(nodes int, sync string) string {
	every := "sync_interval default: files are synced every two minutes"
	if sync == "always" {
		every = "sync_interval always: files are synced before an answer"
	}
	return fmt.Sprintf("%s, file storage, %s; other settings nats-server's own, no limit on open atomic batches",
		count(peerReplicas(nodes), "replica"), every)
}
