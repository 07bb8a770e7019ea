package wal

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cantuslog/cantus/wal/journal"
)

// Format is the version of the data directory's layout.
const Format = 1

// Identity names the cluster and node that a data directory belongs to. It is
// written when the directory is founded, and changes only when the directory
// is made the only member of a new cluster.
type Identity struct {
	Format int `json:"format"`
	// Cluster is the cluster's name, ID its unique id.
	Cluster    string    `json:"cluster"`
	ID         string    `json:"id"`
	Node       string    `json:"node"`
	Partitions int       `json:"partitions"`
	Founded    time.Time `json:"founded"`
	// NodeID identifies the directory. A node that starts again with an empty
	// directory is another node.
	NodeID string `json:"node_id"`
	// Founders are the nodes that founded the cluster, with their NodeIDs.
	// Replicas is how many replicas each partition was to have.
	Founders map[string]string `json:"founders,omitempty"`
	Replicas int               `json:"replicas,omitempty"`
	// JoinedAt is a version of the cluster's facts that lists this node: none
	// before it can tell whether the node was removed. It is 0 for a founder,
	// which the first facts list.
	JoinedAt uint64 `json:"joined_at,omitempty"`
	// Past are the clusters that the directory belonged to before it was made
	// the only member of another one, the oldest first.
	Past []PastMembership `json:"past,omitempty"`
	// Recovering is set from the moment when a directory begins to leave its
	// cluster for a new one until its logs have done so too. In between only
	// [Options.Recovering] opens it.
	Recovering *Recovering `json:"recovering,omitempty"`
}

// PastMembership is a cluster that a data directory belonged to.
type PastMembership struct {
	Cluster string `json:"cluster"`
	ID      string `json:"id"`
	NodeID  string `json:"node_id"`
	// Left is when the directory was made the only member of another cluster.
	Left time.Time `json:"left"`
}

// Recovering is what a recovery that is under way was asked to do.
type Recovering struct {
	// Empty says that partitions without a replica in the directory begin
	// empty, and Fenced that replicas that are fenced count.
	Empty  bool `json:"empty,omitempty"`
	Fenced bool `json:"fenced,omitempty"`
}

const (
	identityFile = "cantus.json"
	// foundingFile exists while a directory is being founded. The other files
	// then hold nothing yet.
	foundingFile = "founding"
)

// ReadIdentity returns the identity of dir. The error is fs.ErrNotExist for a
// directory that was not founded, and else wraps [ErrFormat] or [ErrDamaged].
func ReadIdentity(dir string) (Identity, error) {
	var id Identity
	path := filepath.Join(dir, identityFile)
	if err := readChecksummed(path, &id); err != nil {
		return id, err
	}
	if id.Format > Format {
		return id, fmt.Errorf("%w: %s says format %d, this version knows %d: use a newer cantus",
			ErrFormat, path, id.Format, Format)
	}
	return id, nil
}

// identify reads dir's identity and compares it with want; zero fields of want
// match anything. If dir is to be founded, fresh is true and the identity is
// the one that it will have.
func identify(dir string, want Identity) (id Identity, fresh bool, err error) {
	have, err := ReadIdentity(dir)
	if errors.Is(err, fs.ErrNotExist) {
		nodeID, err := beginFounding(dir)
		if err == nil && want.NodeID != "" && want.NodeID != nodeID {
			err = fmt.Errorf("%w: %s was begun as node id %s, not %s", ErrIdentity, dir, nodeID, want.NodeID)
		}
		if err != nil {
			return have, false, err
		}
		want.NodeID = nodeID
		return newIdentity(want), true, nil
	}
	if err != nil {
		return have, false, err
	}
	differ := func(what string, has, wants any) error {
		return fmt.Errorf("%w: %s holds %s %v, not %v: give what it holds, or another directory", ErrIdentity, dir, what, has, wants)
	}
	switch {
	case want.Cluster != "" && want.Cluster != have.Cluster && have.was(want.Cluster):
		err = fmt.Errorf("%w: %s left the cluster %s when it was recovered, and belongs to %s now: start it with that cluster name",
			ErrIdentity, dir, want.Cluster, have.Cluster)
	case want.Cluster != "" && want.Cluster != have.Cluster:
		err = differ("cluster", have.Cluster, want.Cluster)
	case want.ID != "" && want.ID != have.ID:
		err = differ("cluster id", have.ID, want.ID)
	case want.Node != "" && want.Node != have.Node:
		err = differ("node", have.Node, want.Node)
	case want.Partitions != 0 && want.Partitions != have.Partitions:
		err = fmt.Errorf("%w: %s was founded with another number of partitions, %d and not %d: it can't change",
			ErrIdentity, dir, have.Partitions, want.Partitions)
	}
	return have, false, err
}

func newIdentity(want Identity) Identity {
	if want.ID == "" {
		want.ID = randomID()
	}
	if want.Founders == nil {
		want.Founders = map[string]string{want.Node: want.NodeID}
	}
	want.Format, want.Founded = Format, time.Now().UTC()
	return want
}

func randomID() string {
	var r [16]byte
	_, _ = rand.Read(r[:]) // never fails, says crypto/rand
	return hex.EncodeToString(r[:])
}

// Nominate returns the node id that an empty or missing directory will have
// once [Open] has founded it. It is the same each time, also after a crash. The
// errors to test for are [ErrInUse], [ErrReadOnly] and [ErrDamaged].
func Nominate(dir string) (nodeID string, err error) {
	defer func() {
		if err != nil {
			err, _ = explain(err)
			err = fmt.Errorf("open %s: %w", dir, err)
		}
	}()
	if err := makeDir(dir); err != nil {
		return "", err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	nodeID, err = beginFounding(dir)
	return nodeID, errors.Join(err, unlockDir(lock))
}

// journalID derives the journal's store id from the id of the cluster in which
// the directory was founded.
func (id Identity) journalID() [16]byte {
	founded := id.ID
	if len(id.Past) > 0 {
		founded = id.Past[0].ID
	}
	sum := sha256.Sum256([]byte(founded))
	return [16]byte(sum[:16])
}

// was reports whether the directory belonged to a cluster of that name.
func (id Identity) was(cluster string) bool {
	return slices.ContainsFunc(id.Past, func(p PastMembership) bool { return p.Cluster == cluster })
}

// Recover returns the identity of a directory that leaves its cluster and
// becomes the only member of a new one, with a name that none of its clusters
// has had. joinedAt is the version of the facts that says so.
func (id Identity) Recover(cluster string, joinedAt uint64, how Recovering) Identity {
	left := PastMembership{Cluster: id.Cluster, ID: id.ID, NodeID: id.NodeID, Left: time.Now().UTC()}
	id.Past = append(slices.Clone(id.Past), left)
	id.Cluster, id.ID, id.NodeID, id.JoinedAt, id.Recovering = cluster, randomID(), randomID(), joinedAt, &how
	return id
}

// HasBeen reports whether the directory belongs to a cluster of that name, or
// did.
func (id Identity) HasBeen(cluster string) bool { return id.Cluster == cluster || id.was(cluster) }

// SetIdentity replaces the directory's identity by one that [Identity.Recover]
// has returned, or ends what it began. When it returns nil the identity
// survives power loss.
func (s *Store) SetIdentity(id Identity) error {
	if id.journalID() != s.identity.journalID() || id.Partitions != s.identity.Partitions || id.Format != s.identity.Format {
		return fmt.Errorf("%w: the identity is not a successor of the one of %s", ErrIdentity, s.dir)
	}
	if err := writeChecksummed(filepath.Join(s.dir, identityFile), id); err != nil {
		return err
	}
	s.identity = id
	return nil
}

// beginFounding checks that dir may be founded: it is empty, or was left by an
// unfinished founding and is then emptied. It returns the directory's node id,
// which the founding file holds.
func beginFounding(dir string) (nodeID string, err error) {
	founding := filepath.Join(dir, foundingFile)
	id, err := os.ReadFile(founding)
	if errors.Is(err, fs.ErrNotExist) {
		err = mustBeEmpty(dir)
	}
	if err != nil {
		return "", err
	}
	if len(id) != len(randomID()) { // none yet, or cut short by a crash: no other node knows it
		id = []byte(randomID())
		if err := writeSynced(founding, id); err != nil {
			return "", err
		}
	}
	for _, name := range []string{journalDir, badgerDir, checkpointName, identityFile + ".tmp"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return string(id), journal.OSFS.SyncDir(dir)
}

func mustBeEmpty(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch n.Name() {
		case lockFile, "lost+found": // the root of a file system has the latter
		default:
			return fmt.Errorf("%w: %s is missing, and %s holds %s: it is not a data directory, or one whose identity was lost",
				ErrDamaged, filepath.Join(dir, identityFile), dir, n.Name())
		}
	}
	return nil
}

// finishFounding writes the identity, which makes dir a data directory. The
// other parts are durable before it is.
func (s *Store) finishFounding() error {
	all := func(string) bool { return true }
	if err := syncDir(filepath.Join(s.dir, badgerDir), all); err != nil {
		return err
	}
	founded, _ := s.state()
	if err := writeChecksummed(filepath.Join(s.dir, checkpointName), founded); err != nil {
		return err
	}
	return writeChecksummed(filepath.Join(s.dir, identityFile), s.identity)
}

// endFounding removes the founding file, also one that a crash has left.
func (s *Store) endFounding() error {
	if err := removeNomineeKey(s.dir); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(s.dir, foundingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, journal.OSFS.SyncDir(s.dir))
}

// makeDir makes dir and its parents, durably.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return fmt.Errorf("%s is a file: a data directory is needed", dir)
	} else if err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return journal.OSFS.SyncDir(parent)
}
