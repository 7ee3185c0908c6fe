"""Data frames of other libraries: conversion from frames to Arrow, and from results to frames.

Only the conversion differs between libraries: `batch` sends, keeps and joins the rows.
"""
