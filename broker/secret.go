package broker

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cantuslog/cantus/wal"
)

// The nodes of a cluster share one secret. Whatever they prove to each other,
// or keep from others, uses a key that derives from it: see docs/adr/0018.

// minToken is the least length of a cluster's token, in bytes.
const minToken = 32

// tokenSecret returns the secret that a token stands for.
func tokenSecret(token string) wal.Secret {
	return wal.Secret{Key: deriveKey([]byte(token), "", "cluster secret"), Token: true}
}

// deriveKey returns 32 bytes for a purpose.
func deriveKey(secret []byte, salt, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, secret, []byte(salt), "cantus "+purpose, sha256.Size)
	if err != nil {
		panic(err) // only for a length that SHA-256 can't give
	}
	return key
}

// derive returns a key of 32 bytes that the members of this cluster share, the
// same for the same purpose, and nobody else has. The data directory is founded
// by then.
func (n *Node) derive(purpose string) []byte {
	return deriveKey(n.secret.Key, n.store.Identity().ID, purpose)
}

// setSecret has the node use a secret from now on.
func (n *Node) setSecret(s wal.Secret) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.secret = s
}

// openSecret reads the secret of a data directory that is founded, or gives it
// one if that can be.
func (n *Node) openSecret(dir string) error {
	have, err := wal.ReadSecret(dir)
	if err == nil {
		n.setSecret(have)
		return n.checkToken(dir)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	founders := n.store.Identity().Founders
	_, founded := founders[n.opts.Name]
	switch {
	case n.opts.ClusterSecret != "":
		have = tokenSecret(n.opts.ClusterSecret)
	case len(founders) == 0 || len(founders) == 1 && founded:
		have = newSecret()
	default:
		return fmt.Errorf("%w: %s belongs to a cluster and holds no cluster secret (cluster.key): "+
			"give the same token to every node, with --cluster-secret-file", ErrIdentity, dir)
	}
	return n.keepSecret(dir, have)
}

func newSecret() wal.Secret {
	s := wal.Secret{Key: make([]byte, wal.SecretSize)}
	_, _ = rand.Read(s.Key) // never fails, says crypto/rand
	return s
}

// keepSecret writes a secret down and has the node use it.
func (n *Node) keepSecret(dir string, s wal.Secret) error {
	if err := wal.WriteSecret(dir, s); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	n.setSecret(s)
	return nil
}

// checkToken refuses a token that does not stand for the directory's secret.
func (n *Node) checkToken(dir string) error {
	if n.opts.ClusterSecret == "" || bytes.Equal(tokenSecret(n.opts.ClusterSecret).Key, n.secret.Key) {
		return nil
	}
	return fmt.Errorf("%w: %s holds another cluster secret than the token that was given: give the cluster's own token; "+
		"to change it, stop every node, remove cluster.key from each data directory, and start all with the new one", ErrIdentity, dir)
}

// nominate prepares a directory that is yet to be founded: it has the secret of a
// token, or a key to show to those that hand one out.
func (n *Node) nominate(dir string) error {
	n.dir = dir
	if n.opts.ClusterSecret != "" {
		return n.keepSecret(dir, tokenSecret(n.opts.ClusterSecret))
	}
	seed, err := wal.NomineeKey(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	if n.private, err = ecdh.X25519().NewPrivateKey(seed); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	if len(n.opts.Bootstrap) == 0 {
		return nil
	}
	// A founder that was stopped may have handed the secret out, or proved to
	// others that it has it.
	have, err := wal.ReadSecret(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, wal.ErrDamaged) {
		return nil
	}
	if err == nil && !have.Token {
		n.setSecret(have)
	}
	return err
}

// exchangeSecret gets one secret to all founders that were given no token: the
// first by name makes it and seals it for each of the others. Everyone writes it
// down before it proves that it has it, and nobody founds before all have.
func (n *Node) exchangeSecret(founders map[string]candidate) error {
	if n.opts.ClusterSecret != "" {
		return nil
	}
	maker := slices.Min(n.opts.Bootstrap)
	if n.opts.Name == maker {
		return n.handOutSecret(founders)
	}
	for _, q := range founders {
		if q.proved {
			return nil // others have the one that this node has
		}
	}
	q := founders[maker]
	sealed := q.Keys[n.opts.Name]
	if sealed == nil {
		return nil
	}
	s, err := unwrapSecret(sealed, n.private, sealContext(n.opts.Cluster, n.opts.Name, n.nodeID))
	if err != nil {
		n.distrust("sealed secret", maker, err)
		return nil
	}
	if s.Token || bytes.Equal(s.Key, n.secret.Key) {
		return nil
	}
	if err := n.keepSecret(n.dir, s); err != nil {
		return err
	}
	n.peers.candidates.doubtAll()
	n.log.Info("the cluster's secret has come", "from", maker, "key", fingerprint(n.private.PublicKey().Bytes()))
	n.helloSoon()
	return nil
}

// handOutSecret makes the secret, and seals it for the founders that have none and
// say the same as this node.
func (n *Node) handOutSecret(founders map[string]candidate) error {
	if n.secret.Key == nil {
		if err := n.keepSecret(n.dir, newSecret()); err != nil {
			return err
		}
	}
	self, changed := n.identityHello(), false
	sealed := map[string][]byte{}
	for name, q := range founders {
		if q.proved || len(q.Key) == 0 || difference(self, q.hello) != "" {
			continue
		}
		to := q.NodeID + string(q.Key)
		if n.sealedFor[name] != to {
			b, err := wrapSecret(n.secret, q.Key, sealContext(n.opts.Cluster, name, q.NodeID))
			if err != nil {
				n.distrust("key", name, err)
				continue
			}
			n.sealedFor[name], sealed[name], changed = to, b, true
			n.log.Info("the cluster's secret is handed to a founder", "node", name, "key", fingerprint(q.Key))
			continue
		}
		sealed[name] = self.Keys[name]
	}
	n.mu.Lock()
	n.sealed = sealed
	n.mu.Unlock()
	if changed {
		n.helloSoon()
	}
	return nil
}

// takeSecret takes the secret out of the answer to a node that joins, which must
// be signed with it. waiting says what is wrong with it.
func (n *Node) takeSecret(e envelope, r joinReply, subject string) (waiting string, err error) {
	if n.opts.ClusterSecret != "" {
		return "", nil // the answer was signed with it
	}
	s, err := unwrapSecret(r.Sealed, n.private, sealContext(n.opts.Cluster, n.opts.Name, n.nodeID))
	if err != nil || e.cluster != r.ID || !e.proves(messageKey(s.Key, e.cluster), answerTo(subject)) {
		n.distrust("sealed secret", e.name, err)
		return fmt.Sprintf("an answer of cluster %q that holds its secret", n.opts.Cluster), nil
	}
	return "", n.keepSecret(n.dir, s)
}

// routePassword returns the password of route ports that goes with a token. It
// can't depend on the cluster's id: a node that founds or joins one does not know
// it yet. Without a token there is none, or such a node could not come.
func routePassword(s wal.Secret, cluster string) string {
	if !s.Token {
		return ""
	}
	return hex.EncodeToString(deriveKey(s.Key, cluster, "routes"))
}
