package proof

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// Conditions is a test for write skew by conditions. In each round two writers
// append concurrently, from one high-water mark, and each does so unless
// somebody has recorded two names together. If they have one of the names in
// common, both commit, and if they have both in common, one of them does. A
// third one asks for two names that were recorded, though never together.
type Conditions struct {
	// Workers is the number of pairs of writers. Each pair has names of its own,
	// and Rounds rounds.
	Workers, Rounds int
	// Failures is how often the leader fails during the test.
	Failures int
	// Unchecked leaves the conditions out, which shows that the test can detect
	// a writer that was not refused.
	Unchecked bool
}

// pair is two writers.
type pair struct {
	two       [2]*client.Client
	names     string // begins their names
	mark      uint64
	unchecked bool

	committed, broken int
}

// Run runs the rounds on an empty log. It returns the number of rounds in which
// both writers committed although they had both names in common, and an error
// if a writer was refused for nothing, or if the log differs from what the
// writers know.
func (c Conditions) Run(ctx context.Context, log Log) (broken int, err error) {
	var two [2]*client.Client
	for i := range two {
		nc, err := log.Connect()
		if err != nil {
			return 0, err
		}
		defer nc.Close()
		if two[i], err = client.New(nc, client.Options{}); err != nil {
			return 0, err
		}
		defer two[i].Close() // all its appends have ended
	}
	done := newProgress()
	pairs := make([]pair, c.Workers)
	group, running := errgroup.WithContext(ctx)
	for i := range pairs {
		pairs[i] = pair{two: two, names: fmt.Sprintf("pair.%d.", i), unchecked: c.Unchecked}
		group.Go(func() error {
			for range c.Rounds {
				if err := pairs[i].round(running); err != nil {
					return fmt.Errorf("pair %d at mark %d: %w", i, pairs[i].mark, err)
				}
				done.add()
			}
			return nil
		})
	}
	group.Go(func() error { return done.fail(running, log, c.Failures, c.Workers*c.Rounds) })
	if err := group.Wait(); err != nil {
		return 0, err
	}
	committed := 0
	for i := range pairs {
		committed += pairs[i].committed
		broken += pairs[i].broken
	}
	all, err := readAll(ctx, log)
	if err == nil && len(all) != committed {
		err = fmt.Errorf("the log has %d transactions, and %d have receipts", len(all), committed)
	}
	return broken, err
}

// round has the writers overlap in one name, and then in both.
func (p *pair) round(ctx context.Context) error {
	before := p.mark
	passed, err := p.append(ctx, [2]string{"left", "right"})
	if err != nil {
		return err
	}
	if passed < 2 {
		return errors.New("a writer was refused, and shares only one name with the other")
	}
	if err := p.appendThird(ctx, before); err != nil {
		return err
	}
	if passed, err = p.append(ctx, [2]string{"left", "left"}); err != nil {
		return err
	}
	switch passed {
	case 0:
		return errors.New("both writers were refused")
	case 2:
		p.broken++
	}
	return nil
}

// append has both writers append, each with the shared name and one of the
// others, and returns how many committed.
func (p *pair) append(ctx context.Context, names [2]string) (passed int, err error) {
	var (
		txids  [2]uint64
		causes [2]uint64 // of refusals
	)
	group, running := errgroup.WithContext(ctx)
	for i, c := range p.two {
		group.Go(func() (err error) {
			locks := []string{p.names + "shared", p.names + names[i]}
			req := &client.Request{Kind: "taken", HighWaterMark: p.mark, AppendLocks: locks}
			if !p.unchecked {
				req.Unless = []subjects.QueryItem{{Kinds: []string{"taken"}, Locks: locks}}
			}
			txids[i], causes[i], err = outcome(c.Append(running, req))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	for i, txid := range txids {
		p.mark = max(p.mark, txid)
		if txid != 0 {
			passed++
		} else if causes[i] != txids[1-i] {
			return 0, fmt.Errorf("refused because of %d, and the other writer's is %d", causes[i], txids[1-i])
		}
	}
	p.committed += passed
	return passed, nil
}

// appendThird appends at an old mark, unless the writers' own names were
// recorded together.
func (p *pair) appendThird(ctx context.Context, mark uint64) error {
	r, err := p.two[0].Append(ctx, &client.Request{
		HighWaterMark: mark, Unless: []subjects.QueryItem{{Locks: []string{p.names + "left", p.names + "right"}}},
	})
	if err != nil {
		return fmt.Errorf("no transaction has recorded both names: %w", err)
	}
	p.mark = max(p.mark, r.Txid)
	p.committed++
	return nil
}

// outcome returns the txid of a commit, or of the cause of a refusal.
func outcome(r client.Receipt, err error) (txid, cause uint64, _ error) {
	var conflict *client.ConflictError
	if errors.As(err, &conflict) {
		return 0, conflict.Txid, nil
	}
	return r.Txid, 0, err
}
