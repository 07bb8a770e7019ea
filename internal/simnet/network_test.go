package simnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/internal/simnet"
)

const ms = time.Millisecond

// pair returns a network whose messages take exactly 2 ms, and both ends of a
// connection from host a to host b.
func pair(t *testing.T) (n *simnet.Network, a, b net.Conn) {
	t.Helper()
	n = simnet.New(1, simnet.Latency{Min: 2 * ms})
	l, err := n.Listen(simnet.Address("b", "raft"))
	if err != nil {
		t.Fatal(err)
	}
	a, err = n.Dialer("a")(t.Context(), "tcp", simnet.Address("b", "raft"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return n, a, b
}

// arrives checks when and what a connection reads next. want is the data, or
// the text that the error contains.
func arrives(t *testing.T, c net.Conn, after time.Duration, want string) {
	t.Helper()
	began, p := time.Now(), make([]byte, 100)
	size, err := c.Read(p)
	if got := time.Since(began); got != after {
		t.Errorf("read after %v, want %v", got, after)
	}
	switch {
	case err == nil && string(p[:size]) != want:
		t.Errorf("read %q, want %q", p[:size], want)
	case err != nil && (!strings.Contains(err.Error(), want) || want == ""):
		t.Errorf("error %v, want %q", err, want)
	}
}

func write(t *testing.T, c net.Conn, data string) {
	t.Helper()
	if n, err := c.Write([]byte(data)); n != len(data) || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
}

func TestBytesArriveInOrderAfterALatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := pair(t)
		write(t, a, "one")
		time.Sleep(1 * ms)
		write(t, a, "two")
		arrives(t, b, 1*ms, "one")
		arrives(t, b, 1*ms, "two")
		write(t, b, "three")
		arrives(t, a, 2*ms, "three")
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		arrives(t, b, 2*ms, io.EOF.Error())
		arrives(t, a, 0, net.ErrClosed.Error())
		if err := a.Close(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		write(t, b, "nobody reads this")
		arrives(t, b, 0, io.EOF.Error())
		time.Sleep(4 * ms)
		arrives(t, b, 0, syscall.ECONNRESET.Error())
	})
}

func TestTheSeedDeterminesTheLatencies(t *testing.T) {
	run := func(seed uint64) (all []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			n := simnet.New(seed, simnet.Latency{Min: ms, Max: 9 * ms})
			l, err := n.Listen(simnet.Address("b", "raft"))
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				began := time.Now()
				c, err := n.Dialer("a")(t.Context(), "tcp", simnet.Address("b", "raft"))
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, time.Since(began))
				other, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Close(), other.Close()
			}
		})
		return all
	}
	first := run(1)
	if again := run(1); !slices.Equal(again, first) {
		t.Errorf("seed 1: %v, and then %v", first, again)
	}
	if other := run(2); slices.Equal(other, first) {
		t.Errorf("seeds 1 and 2: %v", first)
	}
	if slices.Min(first) < 2*ms || slices.Max(first) > 18*ms || slices.Min(first) == slices.Max(first) {
		t.Errorf("two ways of 1 to 9 ms took %v", first)
	}
}

func TestABlockedLinkHoldsBackOneDirection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		write(t, a, "on its way")
		n.Block("a", "b")
		write(t, a, ", and later")
		write(t, b, "back")
		arrives(t, a, 2*ms, "back")
		time.AfterFunc(50*ms, func() { n.Unblock("a", "b") })
		arrives(t, b, 50*ms, "on its way")
		arrives(t, b, 0, ", and later")

		n.Block("b", "a")
		ctx, cancel := context.WithTimeout(t.Context(), 10*ms)
		defer cancel()
		if _, err := n.Dialer("a")(ctx, "tcp", simnet.Address("b", "raft")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial through a link that is blocked: %v", err)
		}
		n.Delay("a", "b", 7*ms)
		write(t, a, "slow")
		arrives(t, b, 9*ms, "slow")
		n.Heal()
		write(t, a, "fast")
		arrives(t, b, 2*ms, "fast")
	})
}

func TestAResetBreaksBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		time.AfterFunc(5*ms, func() {
			if got := n.Reset("b", "a"); got != 1 {
				t.Errorf("%d connections were reset", got)
			}
		})
		arrives(t, a, 5*ms, syscall.ECONNRESET.Error())
		if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := pair(t)
		_ = b.SetReadDeadline(time.Now().Add(3 * ms))
		arrives(t, b, 3*ms, os.ErrDeadlineExceeded.Error())
		time.AfterFunc(4*ms, func() { _ = b.SetDeadline(time.Unix(1, 0)) })
		_ = b.SetReadDeadline(time.Time{})
		arrives(t, b, 4*ms, os.ErrDeadlineExceeded.Error())
		if _, err := b.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		_ = b.SetDeadline(time.Time{})
		write(t, a, "x")
		arrives(t, b, 2*ms, "x")
	})
}

func TestAKilledProcessResetsItsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		n.Kill("b")
		arrives(t, b, 0, syscall.ECONNRESET.Error())
		arrives(t, a, 2*ms, syscall.ECONNRESET.Error())
		began := time.Now()
		if _, err := n.Dialer("a")(t.Context(), "tcp", simnet.Address("b", "raft")); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) != 4*ms {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if _, err := n.Dialer("b")(t.Context(), "tcp", simnet.Address("a", "raft")); !errors.Is(err, syscall.ENETDOWN) {
			t.Error(err)
		}
		if _, err := n.Listen(simnet.Address("b", "raft")); err != nil {
			t.Error(err)
		}
		if _, err := n.Dialer("a")(t.Context(), "tcp", simnet.Address("b", "raft")); err != nil {
			t.Error(err)
		}
	})
}

func TestAMachineWithoutPowerIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t)
		n.PowerOff("b")
		if hosts := n.Hosts(); len(hosts) != 0 {
			t.Errorf("%v listen", hosts)
		}
		arrives(t, b, 0, syscall.ECONNRESET.Error())
		write(t, a, "x")
		var l net.Listener
		time.AfterFunc(time.Second, func() { l, _ = n.Listen(simnet.Address("b", "raft")) })
		began := time.Now()
		if _, err := n.Dialer("a")(t.Context(), "tcp", simnet.Address("b", "raft")); err != nil || time.Since(began) != time.Second+2*ms {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		arrives(t, a, 0, syscall.ECONNRESET.Error())
		if hosts := fmt.Sprint(n.Hosts()); hosts != "[b]" {
			t.Errorf("%s listen", hosts)
		}
		_ = l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}
