package group

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/client"
)

// shared is a cursor over a slow and lossy connection, in synctest's time.
type shared struct {
	mu     sync.Mutex
	pos    client.Position
	random *rand.Rand
	worst  time.Duration
	calls  sync.WaitGroup
	sets   int
}

// delay returns a delay that is mostly short and sometimes up to worst.
func (s *shared) delay() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.random.IntN(10) == 0 {
		return time.Duration(s.random.Int64N(int64(s.worst)))
	}
	return time.Duration(s.random.Int64N(int64(s.worst / 50)))
}

// call executes do after a delay, and answers after another one. If ctx ends
// before that, do may still be executed.
func (s *shared) call(ctx context.Context, do func()) (client.Position, error) {
	answer := make(chan client.Position, 1)
	there, back := s.delay(), s.delay()
	s.calls.Go(func() {
		time.Sleep(there)
		s.mu.Lock()
		do()
		pos := s.pos
		s.mu.Unlock()
		time.Sleep(back)
		answer <- pos
	})
	select {
	case pos := <-answer:
		return pos, nil
	case <-ctx.Done():
		return client.Position{}, ctx.Err()
	}
}

func (s *shared) Get(ctx context.Context) (client.Position, error) { return s.call(ctx, func() {}) }

func (s *shared) Set(ctx context.Context, txid uint64) (client.Position, error) {
	return s.call(ctx, func() {
		s.sets++
		last := s.pos.Time
		s.pos.Txid, s.pos.Time = txid, time.Now()
		if !s.pos.Time.After(last) {
			s.pos.Time = last.Add(1)
		}
	})
}

// lifetime returns how long the members of a test live, by the tier of tests
// that runs (see CONTRIBUTING.md).
func lifetime() time.Duration {
	long, _ := strconv.ParseBool(os.Getenv("CANTUS_LONG"))
	switch {
	case long:
		return 24 * time.Hour
	case testing.Short():
		return time.Hour / 2
	}
	return 4 * time.Hour
}

// TestLeaseIsHeldByOneAtATime lets members acquire, lose, release and abandon a
// lease for hours of synctest's time, with any delays.
func TestLeaseIsHeldByOneAtATime(t *testing.T) {
	const term, members = 6 * time.Second, 4
	for i, worst := range []time.Duration{term / 100, term / 3, term, 3 * term, term / 100, term / 3, term, 3 * term} {
		byReading := i >= 4
		t.Run(fmt.Sprintf("%v, quiet %v", worst, byReading), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				s := &shared{random: rand.New(rand.NewPCG(seed, 0)), worst: worst, pos: client.Position{HighWaterMark: 1}}
				var mu sync.Mutex
				until := make([]time.Time, members)
				begins := make([]int, members)
				end := time.Now().Add(lifetime())
				var wg sync.WaitGroup
				for i := range members {
					wg.Go(func() {
						random := rand.New(rand.NewPCG(seed, uint64(i)))
						l := newLease(s, term)
						l.byReading = byReading
						for time.Now().Before(end) {
							ctx, cancel := context.WithTimeout(t.Context(), term/3)
							_ = l.step(ctx) // a failed step does nothing
							cancel()
							mu.Lock()
							if l.held() {
								for j, other := range until {
									if j != i && time.Now().Before(other) {
										t.Errorf("%d holds it up to %v, and %d up to %v", i, l.heldUntil, j, other)
									}
								}
								if until[i].Before(time.Now()) {
									begins[i]++
								}
								until[i] = l.heldUntil
							}
							mu.Unlock()
							switch random.IntN(100) {
							case 0: // what the lease protected ends first
								mu.Lock()
								until[i] = time.Time{}
								mu.Unlock()
								ctx, cancel := context.WithTimeout(t.Context(), term/3)
								_ = l.release(ctx)
								cancel()
							case 1: // a crash; a new member takes its place
								mu.Lock()
								if !l.heldUntil.IsZero() {
									until[i] = time.Time{}
								}
								mu.Unlock()
								l = newLease(s, term)
								l.byReading = byReading
							}
							time.Sleep(term / 4)
						}
					})
				}
				wg.Wait()
				s.calls.Wait()
				for i, n := range begins {
					if n == 0 && worst < term {
						t.Errorf("%d never held it", i)
					}
				}
				t.Logf("acquired %v times", begins)
			})
		})
	}
}

// TestMemberLeasesAreWrittenForOthers checks that a member sets its lease once
// while it is alone, and is seen to be alive as soon as there is another
// member.
func TestMemberLeasesAreWrittenForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term, members = 6 * time.Second, 4
		var cursors []*shared
		for range members {
			cursors = append(cursors, &shared{random: rand.New(rand.NewPCG(1, 0)), worst: term / 100, pos: client.Position{HighWaterMark: 1}})
		}
		join := func() *member {
			m := &member{number: -1}
			for _, s := range cursors {
				m.memberLeases = append(m.memberLeases, newLease(s, term))
			}
			return m
		}
		sets := func() (n int) {
			for _, s := range cursors {
				n += s.sets
			}
			return n
		}
		first, second := join(), join()
		for hour := time.Now().Add(time.Hour); time.Now().Before(hour); time.Sleep(term / 4) {
			if err := first.renewMembership(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := sets(); n > 2 {
			t.Errorf("a member that is alone has written %d times in an hour", n)
		}
		mine, since := first.number, time.Now()
		for hour := time.Now().Add(time.Hour); time.Now().Before(hour); time.Sleep(term / 4) {
			if err := errors.Join(second.renewMembership(t.Context()), first.renewMembership(t.Context())); err != nil {
				t.Fatal(err)
			}
			if first.number != mine || !second.memberLeases[mine].taken() {
				t.Fatalf("after %v the first member is taken for dead", time.Since(since))
			}
			if time.Since(since) > 2*term && !first.memberLeases[second.number].taken() {
				t.Fatal("the second member is taken for dead")
			}
		}
		for _, s := range cursors {
			s.calls.Wait()
		}
	})
}
