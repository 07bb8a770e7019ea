//go:build netfaults

package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// spaces are network namespaces, one for each node, with a link between each
// two of them and one from each to the test, so that nodes can be cut off from
// each other and clients still reach them. It needs root and iproute2.
type spaces struct {
	tb    testing.TB
	mark  string // what all names of ours begin with
	net   string // the first three bytes of all addresses
	names []string
}

// made counts the sets of namespaces.
var made atomic.Int32

func newSpaces(tb testing.TB, names ...string) *spaces {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("network namespaces need root: run this verb as root")
	}
	id := (os.Getpid() + int(made.Add(1))) % 10_000 // what is deleted goes by and by
	s := &spaces{tb: tb, mark: fmt.Sprintf("cq%d", id), net: fmt.Sprintf("10.%d.%d", 100+id/100, id%100), names: names}
	for _, name := range names {
		s.ip("netns", "add", s.space(name))
		tb.Cleanup(func() { s.ip("netns", "del", s.space(name)) }) // its links go with it
		s.ip("-n", s.space(name), "link", "set", "lo", "up")
		s.ip("-n", s.space(name), "addr", "add", s.host(name)+"/32", "dev", "lo")
		s.linkTest(name)
	}
	for i, a := range names {
		for _, b := range names[:i] {
			s.ip("link", "add", "to-"+b, "netns", s.space(a), "type", "veth", "peer", "name", "to-"+a, "netns", s.space(b))
			s.up(a, b)
			s.up(b, a)
		}
	}
	return s
}

// linkTest connects a node's namespace with the test's.
func (s *spaces) linkTest(name string) {
	s.tb.Helper()
	outer := s.mark + name
	s.ip("link", "add", outer, "type", "veth", "peer", "name", "to-test", "netns", s.space(name))
	s.ip("addr", "add", s.net+".200/32", "dev", outer)
	s.ip("link", "set", outer, "up")
	s.ip("route", "add", s.host(name), "dev", outer, "src", s.net+".200")
	s.ip("-n", s.space(name), "link", "set", "to-test", "up")
	s.ip("-n", s.space(name), "route", "add", s.net+".200", "dev", "to-test", "src", s.host(name))
}

// up opens one end of the link between two nodes.
func (s *spaces) up(from, to string) {
	s.tb.Helper()
	s.ip("-n", s.space(from), "link", "set", "to-"+to, "up")
	s.ip("-n", s.space(from), "route", "replace", s.host(to), "dev", "to-"+to, "src", s.host(from))
}

func (s *spaces) space(name string) string { return s.mark + "-" + name }

func (s *spaces) host(name string) string {
	return fmt.Sprintf("%s.%d", s.net, slices.Index(s.names, name)+1)
}

// enter is the command that runs another one in a node's namespace.
func (s *spaces) enter(name string) []string {
	return []string{"ip", "netns", "exec", s.space(name)}
}

func (s *spaces) ip(args ...string) {
	s.tb.Helper()
	s.run("ip", args...)
}

func (s *spaces) run(command string, args ...string) {
	s.tb.Helper()
	if out, err := exec.Command(command, args...).CombinedOutput(); err != nil {
		s.tb.Fatalf("%s %s: %v: %s", command, strings.Join(args, " "), err, out)
	}
}

// set takes a node's links to the other nodes down, or up.
func (s *spaces) set(name string, cut bool) {
	s.tb.Helper()
	for _, other := range s.names {
		switch {
		case other == name:
		case cut:
			s.ip("-n", s.space(name), "link", "set", "to-"+other, "down")
		default:
			s.up(name, other)
			s.up(other, name)
		}
	}
}

// delay holds back everything that nodes send to each other.
func (s *spaces) delay(time string) {
	s.tb.Helper()
	for _, from := range s.names {
		for _, to := range s.names {
			if from != to {
				// "Specified qdisc kind is unknown" says that the kernel lacks
				// sch_netem.
				s.run("tc", "-n", s.space(from), "qdisc", "add", "dev", "to-"+to, "root", "netem", "delay", time)
			}
		}
	}
}
