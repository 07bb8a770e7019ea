package main

import "testing"

// The partition of a line is what its JSON says, wherever it is written.
func TestNamedPartition(t *testing.T) {
	for line, want := range map[string]int{
		`{"partition":0,"payload":""}`: 0, `{"partition":12,"payload":""}`: 12, `{"partition":3}`: 3, `{ "partition" : 4, "payload":""}`: 4,
		`{"payload":"","partition":5}`: 5, `{"p\u0061rtition":6,"payload":""}`: 6, `{"payload":"{\"partition\":1,","partition":7}`: 7,
		`{"payload":"partition"}`: -1, `{"payload":"{\"partition\":1,"}`: -1, `{"headers":{"partition":["1"]}}`: -1, `{"payload":"\u0061"}`: -1,
		`{"partition":x,`: -1, `{"partition":`: -1, ``: -1, `null`: -1, `[{"partition":1}]`: -1, `{"partition":"1","payload":""}`: -1,
	} {
		got, ok := namedPartition([]byte(line))
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%s names partition %d, want %d", line, got, want)
		}
	}
}
