package main

import "testing"

func TestNearest(t *testing.T) {
	candidates := []string{"append", "read", "get", "status", "partitions", "cluster-name"}
	for word, want := range map[string]string{
		"apend": "append", "raed": "read", "stauts": "status", "partition": "partitions",
		"clustername": "cluster-name", "xylophone": "", "": "",
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
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
