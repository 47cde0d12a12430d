package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds what is read of a file, in bytes. Some hundred are usual.
const maxFile = 1 << 20

// readFile reads the settings of a YAML file. In the origins and errors is its
// path as it was given, and the line.
func readFile(from given) (layer, error) {
	path := from.text
	if path == "" {
		return layer{}, fmt.Errorf("%s: the path is empty: give it the path of a YAML file", from.origin)
	}
	data, err := readLimited(path)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err // the path is in the line already
		}
		return layer{}, fmt.Errorf("%s: read %q: %w: give it the path of a YAML file that can be read", from.origin, path, err)
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return layer{}, nil // only comments
		}
		return layer{}, fmt.Errorf("%s: %w", path, syntaxError(err))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return layer{}, fmt.Errorf("%s: there is more than one YAML document: remove what follows the line \"---\"", path)
	}
	return readSettings(path, doc.Content[0])
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, errors.New("the file is larger than 1 MiB")
	}
	return data, nil
}

var yamlLine = regexp.MustCompile(`^yaml: (line \d+): `)

// syntaxError says where YAML is broken. The library's own words may quote a
// part of a connection string, so those that quote are not repeated.
func syntaxError(err error) error {
	text := err.Error()
	where := ""
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		where = " at " + m[1]
		text = text[len(m[0]):]
	}
	text = strings.TrimPrefix(text, "yaml: ")
	if strings.Contains(text, "`") || strings.Contains(text, "anchor") {
		return fmt.Errorf("not valid YAML%s: put the value into quotes", where)
	}
	return fmt.Errorf("not valid YAML%s: %s: mend it, or put the value into quotes", where, text)
}

// readSettings reads the top of the document.
func readSettings(path string, top *yaml.Node) (layer, error) {
	var l layer
	if isNull(top) {
		return l, nil
	}
	err := eachPair(path, "", top, func(at, key string, value *yaml.Node) error {
		s := lookup(key)
		if now := renamed[key]; now != "" {
			return fmt.Errorf("%s: the setting has another name now: write %s", at, now)
		}
		if s == nil {
			return fmt.Errorf("%s: there is no such setting%s", at, didYouMean(key, keys()))
		}
		if key == membersKey {
			return eachPair(path, key+".", value, func(at, name string, conn *yaml.Node) error {
				text, err := scalar(conn)
				if err != nil {
					return fmt.Errorf("%s: %w", at, err)
				}
				l.members = append(l.members, given{name, text, at})
				return nil
			})
		}
		if s.clear != nil {
			l.addList(key)
			return eachItem(path, key, value, l.addItem)
		}
		text, err := scalar(value)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		l.values = append(l.values, given{key, text, at})
		return nil
	})
	return l, err
}

// eachPair calls do for each pair of a mapping, in order, and refuses another
// kind of node and a key that comes twice. at is where the pair is: path, line,
// prefix and key.
func eachPair(path, prefix string, node *yaml.Node, do func(at, key string, value *yaml.Node) error) error {
	where := fmt.Sprintf("%s:%d: ", path, node.Line)
	if prefix != "" {
		where += strings.TrimSuffix(prefix, ".") + ": "
	}
	switch {
	case node.Kind != yaml.MappingNode && prefix == "":
		return fmt.Errorf("%sthe file must hold lines such as \"interval: 1s\"", where)
	case node.Kind != yaml.MappingNode:
		return fmt.Errorf("%sit must hold indented lines such as \"pg1: host=10.0.0.1 user=pgfailproxy\"", where)
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(node.Content); i += 2 {
		k, v := node.Content[i], node.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			return fmt.Errorf("%s:%d: a key must be a plain word", path, k.Line)
		}
		at := fmt.Sprintf("%s:%d: %s%s", path, k.Line, prefix, printable(k.Value))
		if first, twice := seen[k.Value]; twice {
			return fmt.Errorf("%s: it is already set in line %d: remove one of them", at, first)
		}
		seen[k.Value] = k.Line
		if err := do(at, k.Value, v); err != nil {
			return err
		}
	}
	return nil
}

// eachItem calls do for each item of a list, in order, and refuses another kind
// of node.
func eachItem(path, key string, node *yaml.Node, do func(given)) error {
	if node.Kind != yaml.SequenceNode {
		return fmt.Errorf("%s:%d: %s: it must be a list: write each item on an indented line that begins with \"- \", or [] for none", path, node.Line, key)
	}
	for _, item := range node.Content {
		at := fmt.Sprintf("%s:%d: %s", path, item.Line, key)
		text, err := scalar(item)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		do(given{key, text, at})
	}
	return nil
}

var word = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// printable returns a key, unless it may be a connection string in the wrong
// place.
func printable(key string) string {
	if !word.MatchString(key) {
		return "(a key that is not a word)"
	}
	return key
}

// scalar returns the text of a value, whatever YAML takes it for: what it means
// is decided by the setting.
func scalar(n *yaml.Node) (string, error) {
	switch {
	case isNull(n):
		return "", errors.New(`it has no value: write one, or "" for an empty one, or remove the line`)
	case n.Kind == yaml.AliasNode:
		return "", errors.New("aliases are not supported: write the value itself, in quotes if it begins with *")
	case n.Kind != yaml.ScalarNode:
		return "", errors.New("it must be one value, not a list or mapping")
	}
	return n.Value, nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
