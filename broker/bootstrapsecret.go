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
func (b *bootstrap) nominate(dir string) error {
	b.dir = dir
	if b.opts.ClusterSecret != "" {
		return b.keepSecret(dir, tokenSecret(b.opts.ClusterSecret))
	}
	seed, err := wal.NomineeKey(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	private, err := ecdh.X25519().NewPrivateKey(seed)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	b.mu.Lock()
	b.private = private
	b.mu.Unlock()
	if len(b.opts.Bootstrap) == 0 {
		return nil
	}
	// A founder that was stopped may have handed the secret out, or proved to
	// others that it has it.
	have, err := wal.ReadSecret(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, wal.ErrDamaged) {
		return nil
	}
	if err == nil && !have.Token {
		b.setSecret(have)
	}
	return err
}

// exchangeSecret gets one secret to all founders that were given no token: the
// first by name makes it and seals it for each of the others. Everyone writes it
// down before it proves that it has it, and nobody founds before all have.
func (b *bootstrap) exchangeSecret(founders map[string]candidate) error {
	if b.opts.ClusterSecret != "" {
		return nil
	}
	maker := slices.Min(b.opts.Bootstrap)
	if b.opts.Name == maker {
		return b.handOutSecret(founders)
	}
	for _, q := range founders {
		if q.proved {
			return nil // others have the one that this node has
		}
	}
	q := founders[maker]
	sealed := q.Keys[b.opts.Name]
	if sealed == nil {
		return nil
	}
	s, err := unwrapSecret(sealed, b.private, sealContext(b.opts.Cluster, b.opts.Name, b.nodeID))
	if err != nil {
		b.distrust("sealed secret", maker, err)
		return nil
	}
	if s.Token || bytes.Equal(s.Key, b.currentSecret().Key) {
		return nil
	}
	if err := b.keepSecret(b.dir, s); err != nil {
		return err
	}
	b.peers.candidates.doubtAll()
	b.log.Info("the cluster's secret has come", "from", maker, "key", fingerprint(b.private.PublicKey().Bytes()))
	b.announce()
	return nil
}

// handOutSecret makes the secret, and seals it for the founders that have none and
// say the same as this node.
func (b *bootstrap) handOutSecret(founders map[string]candidate) error {
	if b.currentSecret().Key == nil {
		if err := b.keepSecret(b.dir, newSecret()); err != nil {
			return err
		}
	}
	self, changed := b.identity.hello(), false
	sealed := map[string][]byte{}
	for name, q := range founders {
		if q.proved || len(q.Key) == 0 || difference(self, q.hello) != "" {
			continue
		}
		to := q.NodeID + string(q.Key)
		if b.sealedFor[name] != to {
			box, err := wrapSecret(b.currentSecret(), q.Key, sealContext(b.opts.Cluster, name, q.NodeID))
			if err != nil {
				b.distrust("key", name, err)
				continue
			}
			b.sealedFor[name], sealed[name], changed = to, box, true
			b.log.Info("the cluster's secret is handed to a founder", "node", name, "key", fingerprint(q.Key))
			continue
		}
		sealed[name] = self.Keys[name]
	}
	b.mu.Lock()
	b.sealed = sealed
	b.mu.Unlock()
	if changed {
		b.announce()
	}
	return nil
}

// takeSecret takes the secret out of the answer to a node that joins, which must
// be signed with it. waiting says what is wrong with it.
func (b *bootstrap) takeSecret(e envelope, r joinReply, subject string) (waiting string, err error) {
	if b.opts.ClusterSecret != "" {
		return "", nil // the answer was signed with it
	}
	s, err := unwrapSecret(r.Sealed, b.private, sealContext(b.opts.Cluster, b.opts.Name, b.nodeID))
	if err != nil || e.cluster != r.ID || !e.proves(messageKey(s.Key, e.cluster), answerTo(subject)) {
		b.distrust("sealed secret", e.name, err)
		return fmt.Sprintf("an answer of cluster %q that holds its secret", b.opts.Cluster), nil
	}
	return "", b.keepSecret(b.dir, s)
}
