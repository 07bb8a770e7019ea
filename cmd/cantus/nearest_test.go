package main

import "testing"

func TestNearest(t *testing.T) {
	candidates := []string{"append", "read", "get", "status", "partitions", "cluster-name", "tls", "token"}
	for word, want := range map[string]string{
		"apend": "append", "raed": "read", "stauts": "status", "partition": "partitions",
		"clustername": "cluster-name", "xylophone": "", "": "", "to": "", "x": "", "tsl": "tls",
	} {
		if got := nearest(word, candidates); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"raed", "read", 1}, {"stauts", "status", 1}, {"abc", "cab", 2}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
