package group

import (
	"context"
	"errors"
	"time"

	"github.com/cantuslog/cantus/client"
)

var errLate = errors.New("group: the renewal took too long to count")

// cursor is what a lease needs of one.
type cursor interface {
	Get(ctx context.Context) (client.Position, error)
	Set(ctx context.Context, txid uint64) (client.Position, error)
}

// lease is the right to something, as one member sees it. It has no goroutine:
// look and keep are called every third of a lease or so, by one at a time.
type lease struct {
	cursor cursor
	term   time.Duration
	now    func() time.Time
	quiet  bool // nobody needs to see it renewed: to hold it is to find it one's own

	seen  client.Position // when it was last looked at
	since time.Time       // that it is seen so
	mine  time.Time       // the time of the own last set; zero: not claimed
	at    time.Time       // when the claim was answered
	until time.Time       // held up to here; zero: not held
}

func newLease(k cursor, term time.Duration) *lease {
	return &lease{cursor: k, term: term, now: time.Now}
}

// round is how long one look or renewal may take to count.
func (l *lease) round() time.Duration { return l.term / 3 }

// held reports whether it is held now.
func (l *lease) held() bool { return !l.until.IsZero() && l.now().Before(l.until) }

// alive reports whether somebody, oneself included, holds or claims it, as far
// as was seen.
func (l *lease) alive() bool { return l.seen.Txid != 0 && l.now().Sub(l.since) < l.term }

// look reads the cursor.
func (l *lease) look(ctx context.Context) error {
	pos, err := l.cursor.Get(ctx)
	if err != nil {
		return err
	}
	l.note(pos)
	return nil
}

func (l *lease) note(pos client.Position) {
	if pos.Txid != l.seen.Txid || !pos.Time.Equal(l.seen.Time) || l.since.IsZero() {
		l.since = l.now()
	}
	l.seen = pos
}

// set sets the cursor and tells its time.
func (l *lease) set(ctx context.Context) error {
	pos, err := l.cursor.Set(ctx, 1)
	if err != nil {
		return err
	}
	l.mine = pos.Time
	l.note(pos)
	return nil
}

// lose forgets claim and hold.
func (l *lease) lose() { l.mine, l.until = time.Time{}, time.Time{} }

// keep does one step towards holding the lease, or towards going on holding
// it. An empty partition's is never held.
func (l *lease) keep(ctx context.Context) error {
	began := l.now()
	if !l.until.IsZero() && !began.Before(l.until) {
		l.lose()
	}
	if err := l.look(ctx); err != nil {
		return err
	}
	if l.seen.HighWaterMark == 0 {
		return nil // no cursor can be set there
	}
	switch {
	case l.mine.IsZero():
		return l.claim(ctx)
	case l.seen.Txid == 0 || !l.seen.Time.Equal(l.mine):
		l.lose() // to who set it last
		return nil
	case l.until.IsZero() && began.Sub(l.at) < l.term:
		return nil // others may come yet
	case l.quiet:
		l.until = began.Add(l.term * 9 / 10) // a claimant that sets it after began waits for longer
		return nil
	}
	return l.renew(ctx, began)
}

// claim sets the cursor if it is free.
func (l *lease) claim(ctx context.Context) error {
	if l.alive() {
		return nil
	}
	if err := l.set(ctx); err != nil {
		return err
	}
	l.at = l.now()
	return nil
}

// renew sets the cursor, having found it with the own time since began. It
// counts only if both took no longer than a round: a set that came late may
// have come behind another's claim.
func (l *lease) renew(ctx context.Context, began time.Time) error {
	if err := l.set(ctx); err != nil {
		return err
	}
	if l.now().Sub(began) > l.round() {
		if l.until.IsZero() {
			l.at = l.now() // not held yet: as if claimed only now
		}
		return errLate
	}
	l.until = began.Add(l.term * 9 / 10)
	return nil
}

// release gives it to whoever wants it. What it was held for has to be over.
func (l *lease) release(ctx context.Context) error {
	if l.mine.IsZero() {
		return nil
	}
	held := l.held()
	l.lose()
	if !held {
		return nil // somebody else's by now, or a claim that runs out
	}
	_, err := l.cursor.Set(ctx, 0)
	return err
}
