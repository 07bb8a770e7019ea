package broker

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cantuslog/cantus/wal"
)

// nominate prepares a directory that is yet to be founded: it has the secret of a
// token, or a key to show to those that hand one out.
func (f *founding) nominate(dir string) error {
	f.dir = dir
	if f.opts.ClusterSecret != "" {
		return f.keepSecret(dir, tokenSecret(f.opts.ClusterSecret))
	}
	seed, err := wal.NomineeKey(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	private, err := ecdh.X25519().NewPrivateKey(seed)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	f.mu.Lock()
	f.private = private
	f.mu.Unlock()
	if len(f.opts.Bootstrap) == 0 {
		return nil
	}
	// A founder that was stopped may have handed the secret out, or proved to
	// others that it has it.
	have, err := wal.ReadSecret(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, wal.ErrDamaged) {
		return nil
	}
	if err == nil && !have.Token {
		f.setSecret(have)
	}
	return err
}

// exchangeSecret gets one secret to all founders that were given no token: the
// first by name makes it and seals it for each of the others. Everyone writes it
// down before it proves that it has it, and nobody founds before all have.
func (f *founding) exchangeSecret(founders map[string]candidate) error {
	if f.opts.ClusterSecret != "" {
		return nil
	}
	maker := slices.Min(f.opts.Bootstrap)
	if f.opts.Name == maker {
		return f.handOutSecret(founders)
	}
	for _, q := range founders {
		if q.proved {
			return nil // others have the one that this node has
		}
	}
	q := founders[maker]
	sealed := q.Keys[f.opts.Name]
	if sealed == nil {
		return nil
	}
	s, err := unwrapSecret(sealed, f.private, sealContext(f.opts.Cluster, f.opts.Name, f.nodeID))
	if err != nil {
		f.distrust("sealed secret", maker, err)
		return nil
	}
	if s.Token || bytes.Equal(s.Key, f.currentSecret().Key) {
		return nil
	}
	if err := f.keepSecret(f.dir, s); err != nil {
		return err
	}
	f.peers.candidates.doubtAll()
	f.log.Info("the cluster's secret has come", "from", maker, "key", fingerprint(f.private.PublicKey().Bytes()))
	f.announce()
	return nil
}

// handOutSecret makes the secret, and seals it for the founders that have none and
// say the same as this node.
func (f *founding) handOutSecret(founders map[string]candidate) error {
	if f.currentSecret().Key == nil {
		if err := f.keepSecret(f.dir, newSecret()); err != nil {
			return err
		}
	}
	self, changed := f.identity.hello(), false
	sealed := map[string][]byte{}
	for name, q := range founders {
		if q.proved || len(q.Key) == 0 || difference(self, q.hello) != "" {
			continue
		}
		to := q.NodeID + string(q.Key)
		if f.sealedFor[name] != to {
			b, err := wrapSecret(f.currentSecret(), q.Key, sealContext(f.opts.Cluster, name, q.NodeID))
			if err != nil {
				f.distrust("key", name, err)
				continue
			}
			f.sealedFor[name], sealed[name], changed = to, b, true
			f.log.Info("the cluster's secret is handed to a founder", "node", name, "key", fingerprint(q.Key))
			continue
		}
		sealed[name] = self.Keys[name]
	}
	f.mu.Lock()
	f.sealed = sealed
	f.mu.Unlock()
	if changed {
		f.announce()
	}
	return nil
}

// takeSecret takes the secret out of the answer to a node that joins, which must
// be signed with it. waiting says what is wrong with it.
func (f *founding) takeSecret(e envelope, r joinReply, subject string) (waiting string, err error) {
	if f.opts.ClusterSecret != "" {
		return "", nil // the answer was signed with it
	}
	s, err := unwrapSecret(r.Sealed, f.private, sealContext(f.opts.Cluster, f.opts.Name, f.nodeID))
	if err != nil || e.cluster != r.ID || !e.proves(messageKey(s.Key, e.cluster), answerTo(subject)) {
		f.distrust("sealed secret", e.name, err)
		return fmt.Sprintf("an answer of cluster %q that holds its secret", f.opts.Cluster), nil
	}
	return "", f.keepSecret(f.dir, s)
}
