"""TFDS dataset builders."""
