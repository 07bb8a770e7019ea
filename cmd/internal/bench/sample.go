package bench

// Sample is the result of one round of one system.
type Sample struct {
	Seconds float64 `json:"seconds"`
	Done    uint64  `json:"done"`
	Refused uint64  `json:"refused"`
	Busy    uint64  `json:"busy"`
	// Missed is how many requests, at a fixed rate, were due and not done at
	// the end; latencies count them with the time until then.
	Missed uint64 `json:"missed,omitempty"`
	// Unknown is how many requests of the whole round had an answer that says
	// that the outcome is unknown. Silent had no answer for 10 seconds. Both
	// count with the time that they took.
	Unknown uint64 `json:"unknown,omitempty"`
	Silent  uint64 `json:"silent,omitempty"`
	// Rate is in transactions a second.
	Rate float64 `json:"rate"`
	// ServerCPU, of all nodes, and LoadCPU are processor seconds within the
	// window, or 0 if unknown.
	ServerCPU float64 `json:"server_cpu_seconds"`
	LoadCPU   float64 `json:"load_cpu_seconds"`
	// RSS and Anon are the largest node's resident memory at the end, in
	// bytes.
	RSS  int64 `json:"rss_bytes"`
	Anon int64 `json:"rss_anon_bytes"`
	// Nodes are the same for each node.
	Nodes []NodeUse `json:"nodes,omitempty"`
	// Written is bytes that the device wrote for all nodes, over the whole
	// round and its sync, for each byte of payload; negative if it is not
	// known.
	Written float64 `json:"device_bytes_per_payload_byte"`

	// Quantiles are of the main operation's latency, in this round.
	Quantiles

	latency [ops]*latencies
}

// NodeUse is what one node used.
type NodeUse struct {
	Name string  `json:"name"`
	CPU  float64 `json:"cpu_seconds"`
	RSS  int64   `json:"rss_bytes"`
	Anon int64   `json:"rss_anon_bytes"`
}

// useOf sets the resources that nodes used between two moments.
func (s *Sample) useOf(before, after []usage) {
	for i := range min(len(before), len(after)) {
		if !before[i].Known || !after[i].Known {
			continue
		}
		n := NodeUse{
			Name: nodeName(i), CPU: (after[i].CPU - before[i].CPU).Seconds(), RSS: after[i].RSS, Anon: after[i].Anon,
		}
		s.Nodes = append(s.Nodes, n)
		s.ServerCPU += n.CPU
		s.RSS, s.Anon = max(s.RSS, n.RSS), max(s.Anon, n.Anon)
	}
}
